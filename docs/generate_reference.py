"""Write the reference pages of the documentation from the code, when mkdocs builds the site.

mkdocs runs this file as a hook. What it writes exists in the built site only:

    reference/api/*.md          public classes and functions, one page per package (mkdocstrings)
    reference/cli.md            commands and options, from typer
    reference/configuration.md  keys of a configuration, from the dataclasses of longrec.config
    reference/environment.md    environment variables, with the defaults of bento.settings
    reference/http.md           routes and fields of the service, from its OpenAPI description
    reference/pipelines.md      the table of the steps, from components/
    reference/metrics.md        metrics of the service, from longrec.serving.metrics
    changelog.md                CHANGELOG.md of the repository
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "model" / "longrec"
HIDDEN_PACKAGES = ("cli", "nn.kernels")
"""Packages without a page: the command line has its own, and kernels are called by `nn` only."""
TOP_LEVEL_MODULES = ("config_file", "schema", "errors")
Json = dict[str, Any]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the packages to the navigation."""
    pages = [{name: f"reference/api/{name}.md"} for name in api_packages()]
    _section(_section(config.nav, "Reference"), "Python API").extend(pages)
    return config


def _section(nav: Any, title: str) -> list[Any]:
    """Return the entries of a section of the navigation."""
    for entry in nav:
        if isinstance(entry, dict) and title in entry:
            return entry[title]  # type: ignore[no-any-return]
    raise KeyError(title)


def api_packages() -> list[str]:
    """Return the packages of the library that have public modules, such as `data.store`."""
    names = []
    for folder in sorted(LIBRARY.rglob("*")):
        name = ".".join(folder.relative_to(LIBRARY).parts)
        has_modules = any(not path.stem.startswith("_") for path in folder.glob("*.py"))
        if has_modules and not name.startswith(HIDDEN_PACKAGES):
            names.append(name)
    return names


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages to the files of the site."""
    for path in (str(ROOT), str(LIBRARY.parent)):
        if path not in sys.path:
            sys.path.insert(0, path)
    for name, text in _pages():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Put the table of the steps into the page of the pipelines."""
    if page.file.src_uri != "reference/pipelines.md":
        return markdown
    return markdown.replace("<!-- steps -->", steps_table())


def _pages() -> Iterator[tuple[str, str]]:
    yield "reference/api/longrec.md", public_page()
    for package in api_packages():
        yield f"reference/api/{package}.md", api_page(package)
    yield "reference/cli.md", cli_page()
    yield "reference/configuration.md", configuration_page()
    yield "reference/environment.md", environment_page()
    yield "reference/http.md", http_page()
    yield "reference/metrics.md", metrics_page()
    yield "changelog.md", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# Python API


def public_page() -> str:
    """Return the page of the public names, and of the modules at the top of the library."""
    sentence = "These names come from `import longrec`; each is imported on its first use."
    modules = [f"longrec.{name}" for name in TOP_LEVEL_MODULES]
    return _page("longrec", sentence, _public_names(), *_module_blocks(modules))


def api_page(package: str) -> str:
    """Return a page with the public modules of a package, for mkdocstrings to fill."""
    folder = LIBRARY.joinpath(*package.split("."))
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    introduction = ast.get_docstring(tree) or ""
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    modules = [f"longrec.{package}.{name}" for name in names]
    return _page(f"longrec.{package}", introduction, *_module_blocks(modules))


def _public_names() -> str:
    """Return a table of `longrec.__all__`, each name linked to its description."""
    import longrec

    rows = [("name", "from")]
    for name in longrec.__all__:
        module = getattr(longrec, name).__module__
        if module == "longrec.config":
            link = f"[`{name}`](../configuration.md#{name.lower()})"
        else:
            link = f"[`{name}`][{module}.{name}]"
        rows.append((link, f"`{module}`"))
    return _table(rows)


def _module_blocks(modules: list[str]) -> list[str]:
    return [f"## {module.removeprefix('longrec.')}\n\n::: {module}" for module in modules]


# Command line


def cli_page() -> str:
    """Return the commands of `longrec` with their options, as typer describes them."""
    from typer.main import get_command

    from longrec.cli.main import app

    blocks = list(_commands(get_command(app), "longrec"))
    sentence = "Each command has `--help`. Exit code 1 is an error that the message explains."
    return _page("Command line", sentence, *blocks, _benchmarks())


def _commands(command: Any, name: str) -> Iterator[str]:
    """Yield one block per command, groups first."""
    children = getattr(command, "commands", {})
    if name != "longrec":
        yield _command_block(command, name)
    for child_name, child in children.items():
        yield from _commands(child, f"{name} {child_name}")


def _command_block(command: Any, name: str) -> str:
    text, examples = _help_and_examples(command.help or "")
    rows = [("argument or option", "default", "meaning")]
    for parameter in command.params:
        if parameter.name != "help":
            rows.append(_parameter_row(parameter))
    block = [f"## {name}", text]
    if len(rows) > 1:
        block.append(_table(rows))
    if examples:
        block.append(f"```console\n{examples}\n```")
    return "\n\n".join(block)


def _help_and_examples(text: str) -> tuple[str, str]:
    """Split a help text: click marks verbatim paragraphs by a form feed or a backspace."""
    cleaned = inspect.cleandoc(text).replace("\b", "").replace("\f", "")
    before, _, after = cleaned.partition("Examples:")
    examples = "\n".join(line.strip() for line in after.strip().splitlines())
    return before.strip(), examples


def _parameter_row(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    meaning = " ".join([parameter.help or "", *_notes(parameter)])
    default = parameter.default
    is_shown = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    return names, f"`{default}`" if is_shown else "", meaning


def _notes(parameter: Any) -> Iterator[str]:
    """Yield the choices of a parameter, its variable, and whether it is required or repeated."""
    descriptor = getattr(parameter, "type_descriptor", None)
    annotation = getattr(descriptor, "annotation", None)
    if typing.get_origin(annotation) is typing.Literal:
        choices = ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
        yield f"One of {choices}."
    if parameter.envvar:
        yield f"Variable `{parameter.envvar}`."
    if parameter.required and parameter.param_type_name == "option":
        yield "Required."


def _benchmarks() -> str:
    from longrec.runs.project import benchmarks

    rows = [("benchmark", "what it measures")]
    for name, (_, text) in benchmarks().items():
        rows.append((f"`longrec bench {name}`", text))
    return f"### Benchmarks\n\n{_table(rows)}"


# Steps


def steps_table() -> str:
    """Return the table of the pipeline steps in the order of execution."""
    from longrec.runs.steps import STEPS

    rows = [("step", "does", "calls", "cached", "volumes")]
    for step in STEPS.values():
        path = ROOT / "components" / f"{step.component}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sentence = (ast.get_docstring(tree) or "").split("\n\n")[0].partition(": ")[2]
        calls = ", ".join(f"`{name}`" for name in _library_calls(tree))
        needs = {"work directory": step.uses_workdir, "datasets": step.uses_data}
        volumes = ", ".join(name for name, is_needed in needs.items() if is_needed)
        rows.append((step.name, sentence, calls, "yes" if step.is_cached else "no", volumes))
    return _table(rows)


HELPER_MODULES = (
    "longrec.config",
    "longrec.config_file",
    "longrec.data.files",
    "longrec.reporting",
)
"""Modules of a component that read its settings or write its report."""


def _library_calls(tree: ast.Module) -> list[str]:
    """Return the functions that a component imports from the library."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("longrec"):
            continue
        if not (node.module or "").startswith(HELPER_MODULES):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


# Configuration


def configuration_page() -> str:
    """Return a table per section of a configuration: key, type, default and meaning."""
    from longrec.config import RunConfig
    from pipelines.platform_config import PlatformConfig, StepConfig

    sections = [RunConfig, *_sections(RunConfig)]
    # `platform` belongs to the pipelines, and `platform.steps` maps a step to a StepConfig.
    sections += [PlatformConfig, *_sections(PlatformConfig), StepConfig]
    blocks = [_section_block(section) for section in dict.fromkeys(sections)]
    sentence = (
        "A configuration is a YAML file; `--set train.epochs=2` overrides one key. "
        "Unknown keys and wrong types are errors. "
        "[config.schema.json](config.schema.json) lets your editor complete keys."
    )
    return _page("Configuration keys", sentence, *blocks)


def _sections(parent: type) -> Iterator[type]:
    """Yield the dataclasses that the fields of a dataclass hold, depth first."""
    hints = typing.get_type_hints(parent)
    for field in dataclasses.fields(parent):
        for kind in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(kind):
                yield kind
                yield from _sections(kind)


def _section_block(section: type) -> str:
    text = inspect.getdoc(section) or ""
    introduction, _, arguments = text.partition("Args:")
    meanings = described_arguments(arguments)
    hints = typing.get_type_hints(section)
    rows = [("key", "type", "default", "meaning")]
    for field in dataclasses.fields(section):
        meaning = meanings.get(field.name, "")
        rows.append((f"`{field.name}`", _type(hints[field.name]), _default(field), meaning))
    return f"## {section.__name__}\n\n{introduction.strip()}\n\n{_table(rows)}"


def described_arguments(text: str) -> dict[str, str]:
    """Return the descriptions below `Args:` of a docstring, by name, each on one line."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(text).splitlines():
        start = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if re.match(r"[A-Z]\w*:$", line):
            break
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if isinstance(hint, type) and not typing.get_args(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})" if _is_section(hint) else _code(hint)
    return f"`{re.sub(r'(?:[a-z_]+[.])+', '', str(hint))}`"


def _is_section(kind: type) -> bool:
    return dataclasses.is_dataclass(kind)


def _code(kind: type) -> str:
    return f"`{kind.__name__}`"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "" if dataclasses.is_dataclass(value) else f"`{value!r}`"
    return "required"


# Environment variables

ENVIRONMENT = {
    "LONGREC_HOME": ("all", "Work directory: feature store, registry, logged answers."),
    "BENTOML_HOME": ("service", "BentoML store of the models that may be promoted."),
    "LONGREC_MODEL": ("service", "Model to serve, whatever the registry says."),
    "LONGREC_FOLLOW": ("service", "`0` pins a bento to its own model."),
    "LONGREC_DEVICE": ("service", "Where a worker scores: `cpu` or `cuda`."),
    "LONGREC_THREADS": ("service", "Threads of a worker that share one forward pass."),
    "LONGREC_CACHE_MB": ("service", "KV cache per worker and version, in MiB; GPU memory on cuda."),
    "LONGREC_TIMEOUT_MS": ("service", "Time for an answer when the request names none."),
    "LONGREC_STORE_TIMEOUT_MS": ("service", "Longest wait for the feature store."),
    "LONGREC_QUEUE_SECONDS": ("service", "Time that requests may wait; above it others get 503."),
    "LONGREC_CALLER_REQUESTS": ("service", "Requests in flight of one caller; above it 429."),
    "LONGREC_KEEP_ALIVE_SECONDS": ("service", "Time until an idle connection is closed."),
    "LONGREC_MAX_CANDIDATES": ("service", "Candidates of a request; above it 400."),
    "LONGREC_MAX_EVENTS": ("service", "Events that a request may carry; above it 400 or 413."),
    "LONGREC_LOG_SHARE": ("service", "Share of the answers logged for the drift job."),
    "LONGREC_INFERENCE_PROTOCOL": ("service", "`1` adds the paths of Open Inference Protocol v2."),
    "LONGREC_TOKEN_FILE": ("service", "File with one bearer token per line; read when it changes."),
    "LONGREC_TOKEN": ("service", "A bearer token."),
    "LONGREC_FEATURE_REPO": ("service, CLI", "The Feast repository."),
    "LONGREC_FEATURE_OVERLAY": ("publish", "`redis` or `spark` instead of SQLite and DuckDB."),
    "LONGREC_REDIS": ("publish, push, service", "`host:port[,password=...]` of the online store."),
    "LONGREC_ROOT": ("CLI", "Root of the checkout, when the command runs outside of it."),
    "LONGREC_RETRY_SECONDS": ("steps", "Longest time of repeated requests to an object store."),
    "LONGREC_WEBHOOK": ("pipelines", "Address that gets the outcome of a run."),
    "LONGREC_UI": ("pipelines", "Address of Kubeflow's web interface, for links (`platform.ui`)."),
    "LONGREC_RUN": ("steps", "Id of the run whose record a step writes."),
    "LONGREC_PATIENCE_SECONDS": ("CLI", "How long a silent Kubeflow server is asked again."),
    "KF_PIPELINES_ENDPOINT": ("CLI", "Address of the Kubeflow Pipelines server."),
    "LONGREC_KFP_NAMESPACE": ("CLI", "Namespace on a multi-user server."),
    "LONGREC_KFP_TOKEN": ("CLI", "Token for that server."),
    "LONGREC_KFP_COOKIE": ("CLI", "Cookie of a browser for that server."),
    "OPENLINEAGE_URL": ("steps, CLI", "A lineage server, or any other OPENLINEAGE variable."),
    "OPENLINEAGE_NAMESPACE": ("steps, CLI", "Namespace of jobs and datasets."),
    "MLFLOW_TRACKING_URI": ("steps, CLI", "Server of MLflow; its other variables hold too."),
    "MLFLOW_EXPERIMENT_NAME": ("steps, CLI", "Experiment of the runs."),
    "LONGREC_MODEL_REGISTRY": ("steps, CLI", "Address of a Kubeflow Model Registry."),
    "LONGREC_COMMIT": ("benchmarks", "Commit that rows name; by default that of git."),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("service, steps", "Receiver of traces; see all of `OTEL_*`."),
    "OMP_WAIT_POLICY": ("CLI", "How threads of torch wait; `PASSIVE` unless it is set."),
    "THP_MEM_ALLOC_ENABLE": ("service", "Huge pages for torch; `1` unless it is set."),
}
"""Variable: who reads it, and what it does."""
OTHER_DEFAULTS = {
    "LONGREC_HOME": "`.longrec` of the checkout",
    "BENTOML_HOME": "`~/bentoml`",
    "LONGREC_FEATURE_REPO": "`feature_repo` of the checkout",
    "LONGREC_THREADS": "`2`; on one core `1`",
    "OPENLINEAGE_NAMESPACE": "`longrec`",
    "LONGREC_RETRY_SECONDS": "`120` in a step; `0`, one attempt, elsewhere",
}


class RecordingEnvironment(dict[str, str]):
    """An empty environment that remembers which variables were read, with their defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.defaults: dict[str, str] = {}

    def get(self, name: str, default: Any = None) -> Any:
        """Return the default and remember it."""
        if default is not None:
            self.defaults[name] = default
        return default


def environment_page() -> str:
    """Return a table of the environment variables that longrec reads."""
    from bento.settings import Settings

    environment = RecordingEnvironment()
    Settings.read(environment)
    known = {name: f"`{value}`" for name, value in environment.defaults.items()} | OTHER_DEFAULTS
    rows = [("variable", "read by", "default", "meaning")]
    for name, (reader, meaning) in ENVIRONMENT.items():
        rows.append((f"`{name}`", reader, known.get(name, ""), meaning))
    return _page("Environment variables", "Options of a command come first.", _table(rows))


# Metrics


def metrics_page() -> str:
    """Return a table of the metrics of a service."""
    from prometheus_client import CollectorRegistry

    from longrec.serving.metrics import PrometheusMetrics
    from longrec.serving.prometheus.http_metrics import HttpMetrics
    from longrec.serving.prometheus.process_metrics import ProcessMetrics

    registry = CollectorRegistry()
    PrometheusMetrics(["task"], registry)
    HttpMetrics(registry)
    rows = [("metric", "type", "labels", "meaning")]
    for collector in registry._collector_to_names:
        labels = collector._labelnames  # type: ignore[attr-defined]
        rows += [_metric_row(metric, labels) for metric in collector.describe()]  # type: ignore[attr-defined]
    rows += [_metric_row(metric, ()) for metric in ProcessMetrics([]).collect()]
    sentence = "Prometheus reads them at `GET /metrics`; `deploy/grafana/` holds a dashboard."
    return _page("Metrics", sentence, _table(rows))


def _metric_row(metric: Any, labels: Sequence[str]) -> tuple[str, ...]:
    suffix = "_total" if metric.type == "counter" else ""
    label_text = ", ".join(f"`{label}`" for label in labels)
    return (f"`{metric.name}{suffix}`", metric.type, label_text, metric.documentation)


# HTTP


def http_page() -> str:
    """Return the routes of the service with the fields of their requests and answers."""
    from bento.openapi import build_document

    document = build_document(is_token_required=False)
    schemas: Json = document["components"]["schemas"]
    rows = [("route", "meaning")]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows.append((f"`{method.upper()} {path}`", f"{operation['summary']}."))
    blocks = [_table(rows)]
    for name, schema in schemas.items():
        blocks.append(_schema_block(name, schema))
    sentence = "The service describes itself at `/docs` and `/docs.json`; this page is that text."
    return _page("HTTP API", sentence, *blocks)


def _schema_block(name: str, schema: Json) -> str:
    if "properties" not in schema:
        meaning = _one_line(schema["description"])
        return f"## {name}\n\n{_json_type(schema)}. {meaning}"
    required = schema.get("required", [])
    rows = [("field", "type", "meaning")]
    for field, facts in schema["properties"].items():
        mark = "" if field in required else " (optional)"
        meaning = _one_line(facts.get("description", ""))
        rows.append((f"`{field}`{mark}", _json_type(facts), meaning))
    return f"## {name}\n\n{_one_line(schema.get('description', ''))}\n\n{_table(rows)}"


def _json_type(facts: Json) -> str:
    """Return a short name of a JSON type, with its bounds when they are small numbers."""
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "oneOf" in facts:
        kinds = [_json_type(kind) for kind in facts["oneOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if facts.get("type") == "array":
        return f"list of {_json_type(facts['items'])}" if facts.get("items") else "list"
    kind = str(facts.get("format") or facts.get("type", "any"))
    bounds = [facts.get("minimum"), facts.get("maximum")]
    if all(isinstance(bound, int) and abs(bound) < 1 << 31 for bound in bounds):
        return f"{kind}, {bounds[0]} to {bounds[1]}"
    return kind


# Markdown


def _page(title: str, sentence: str, *blocks: str) -> str:
    return "\n\n".join([f"# {title}", sentence, *blocks]) + "\n"


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return _one_line(text).replace("|", r"\|")


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"</?\w+>", "`", text).split())
