"""The ranker: layers, target-to-history attention, the STCA stack, the mixer head.

Shapes are written with letters, which each file lists. These mean the same in every file:

    R requests    T packed events or rows    N packed targets    D width

These differ by file:

    H   heads; in the files of the FFN (fused_ffn, fused_swiglu, fused_stca, fused_tokens,
        kernels.gate_*) the hidden width
    K   head width; width of an embedding (fused_tokens, kernels.rows); tasks (ranker, scoring)
    M   layers; targets of one request (baselines, target_attention)
    N   candidates of a bucket (scoring.cuda_graphs)
    S   splits of a history; tokens (mixer); retrieved events (baselines.sim)
    W   width of a result or of gathered embeddings
    F   features; index columns (fused_tokens, kernels.rows); layers times heads (cached)
    U   distinct events of one request; user features (scoring)
    C   chunks (cached); compared columns (match_features)

A suffix of a variable lists its dimensions: queries_HMK is [H, M, K].
"""
