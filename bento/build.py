"""Check, build and import bentos in the BentoML store: python build.py COMMAND JSON.

    check   {"tag"}                                        fail if the store has this tag already
    build   {"tag", "bundle", "context", "labels", "out"}  build model and bento, export both to out
    import  {"tag", "folder", "replace"}                   add an exported folder to the store

longrec.release.packaging runs it, and imports no BentoML itself. BENTOML_HOME names the store. A
mistake ends in one line on stderr and exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator

import bentoml
from bentoml.exceptions import BentoMLException, NotFound


def check(tag: str) -> None:
    """Exit with an error if the store has a model or a bento of this tag."""
    for kind, get in (("model", bentoml.models.get), ("bento", bentoml.bentos.get)):
        with contextlib.suppress(NotFound):
            # BentoML resolves `latest` to another tag: that is no duplicate.
            if str(get(tag).tag) == tag:
                message = f"the BentoML store has a {kind} {tag} already"
                raise SystemExit(f"{message}; a version is never used twice")


def build(
    tag: str,
    *,
    bundle: str,
    context: str,
    labels: dict[str, str],
    out: str,
) -> None:
    """Add model and bento to the store and export them to the new folder `out`."""
    check(tag)
    version = tag.partition(":")[2]
    with _all_or_nothing(tag):
        with bentoml.models.create(tag, labels=labels) as model:
            shutil.copytree(bundle, model.path_of("bundle"))
        # BentoML reads no file outside of the current directory.
        with contextlib.chdir(context):
            bento = bentoml.bentos.build_bentofile(build_ctx=context, version=version)
        bento.export(out, output_format="folder")


def import_folder(tag: str, folder: str, replace: bool) -> None:
    """Add an exported bento and its model to the store; `replace` removes the tag first."""
    if replace:
        _delete(tag)
    else:
        check(tag)
    with _all_or_nothing(tag):
        bentoml.bentos.import_bento(folder, input_format="folder")


@contextlib.contextmanager
def _all_or_nothing(tag: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _delete(tag)
        raise


def _delete(tag: str) -> None:
    for delete in (bentoml.bentos.delete, bentoml.models.delete):
        with contextlib.suppress(NotFound):
            delete(tag)


COMMANDS: dict[str, Callable[..., None]] = {
    "check": check,
    "build": build,
    "import": import_folder,
}


def main() -> None:
    """Run the command of the command line."""
    _, command, arguments = sys.argv
    try:
        COMMANDS[command](**json.loads(arguments))
    except BentoMLException as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
