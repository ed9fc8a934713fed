"""The BentoML service.

service             endpoints and life cycle: `bentoml serve bento.service:Ranker`
ranking             one request: admit, read the user, rank, log
schemas             bodies of requests and answers, as the interface describes them
bodies              body of a request as bytes
openapi             OpenAPI document, from the schemas
errors              HTTP status of each error
inference_protocol  Open Inference Protocol v2, an option: another form of /rank
json_errors         middleware: one form of all errors
startup             checks before the service starts
settings            environment variables
traces              spans of requests, in BentoML's internals
uvicorn_adapter     what differs from uvicorn's HTTP, in its internals
build               writes bentos to the BentoML store; a program of its own
"""
