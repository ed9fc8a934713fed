"""Models and bentos in the BentoML store: python build.py check|build|keep JSON. Run by
longrec.release.packaging, which knows no BentoML.

    check  {"tag", "again"}                                  ends well when the store has neither
    model nor bento of this tag, or may have
    build  {"tag", "bundle", "context", "labels", "out"}     model and bento into the store, and
    both as one folder to `out`
    keep   {"tag", "folder", "again"}                        takes over a folder made by build, in
    one go

A mistake ends in one line on stderr and exit code 1. BENTOML_HOME says which store.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator

import bentoml


def check(tag: str, again: bool = False) -> None:
    """Raises SystemExit when the store has a model or a bento of this tag; not where the tag names
    its content (`again`).
    """
    if again:
        return
    for kind, get in (("model", bentoml.models.get), ("bento", bentoml.bentos.get)):
        with contextlib.suppress(bentoml.exceptions.NotFound):
            if str(get(tag).tag) == tag:
                raise SystemExit(
                    f"the BentoML store has a {kind} {tag} already; a version is never used twice"
                )


def build(
    tag: str,
    bundle: str,
    context: str,
    labels: dict[str, str],
    out: str,
) -> None:
    """Writes model and bento to the store and exports them to the folder `out`, which is made."""
    check(tag)
    with _all_or_nothing(tag):
        with bentoml.models.create(tag, labels=labels) as model:
            shutil.copytree(bundle, model.path_of("bundle"))
        with contextlib.chdir(context):  # BentoML reads no file outside of the current directory
            bento = bentoml.bentos.build_bentofile(build_ctx=context, version=tag.partition(":")[2])
        bento.export(out, output_format="folder")


def keep(tag: str, folder: str, again: bool = False) -> None:
    """Copies the bento in a folder, and the model in it, to the store; with `again`, in place of
    what has the tag.
    """
    check(tag, again)
    if again:
        _forget(tag)
    with _all_or_nothing(tag):
        bentoml.bentos.import_bento(folder, input_format="folder")


@contextlib.contextmanager
def _all_or_nothing(tag: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _forget(tag)
        raise


def _forget(tag: str) -> None:
    for delete in (bentoml.bentos.delete, bentoml.models.delete):
        with contextlib.suppress(bentoml.exceptions.NotFound):
            delete(tag)


def main() -> None:
    """Runs the verb of the command line."""
    _, verb, arguments = sys.argv
    verbs: dict[str, Callable[..., None]] = {"check": check, "build": build, "keep": keep}
    try:
        verbs[verb](**json.loads(arguments))
    except bentoml.exceptions.BentoMLException as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
