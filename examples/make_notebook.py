"""Write quickstart.ipynb from the cells of quickstart.py, with their outputs.

python examples/make_notebook.py
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SCRIPT = FOLDER / "quickstart.py"
NOTEBOOK = FOLDER / "quickstart.ipynb"
CELL_MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
TIMEOUT_SECONDS = 600


def notebook_of(script: str) -> nbformat.NotebookNode:
    """Return a notebook with the cells of a script; `# %%` begins a cell."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    _, *parts = CELL_MARK.split(script)
    for number, (mark, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        source = text.strip()
        if mark:
            cell = nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", source, flags=re.MULTILINE))
        else:
            cell = nbformat.v4.new_code_cell(source)
        cell.id = f"cell-{number}"
        notebook.cells.append(cell)
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run every cell in the folder of the examples; outputs go into the notebook."""
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()


def remove_noise(notebook: nbformat.NotebookNode) -> None:
    """Remove warnings and times from the outputs, so equal code gives an equal file."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if output.get("name", "stdout") == "stdout"
            ]


def main() -> None:
    """Write the notebook."""
    notebook = notebook_of(SCRIPT.read_text(encoding="utf-8"))
    execute(notebook)
    remove_noise(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
