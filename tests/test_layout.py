"""The house rules that a machine can check: one notebook, one module; imports go down; the scale; stages; clean outputs; no dangerous code.

Every check is a function that returns a list of complaints, each naming the notebook, the cell and what to do. The same functions are run
on toy notebooks that break one rule each, so a check that could never fail is found here too.

*Exported lines* means lines of exported cells, without blank lines, `#|` directives and cells that only import.
"""
import ast
import builtins
import configparser
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pytest

from sunorecsys.schema import Col
from sunorecsys.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "sunorecsys"
LINES_WALL, CELL_GOOD, CELL_WALL, CELLS_WALL, WORDS_PER_100, BYTES_WALL = 400, 25, 50, 80, 150, 500_000
PARAMETERS = {"workspace", "week", "run", "settings"}
STAGE_NOTEBOOKS = {s.notebook for s in STAGES.values()}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# What is read

@dataclass(frozen=True)
class Cell:
    "A cell of a notebook; `place` is how a complaint names it."
    place: str
    kind: str
    source: str
    tags: tuple[str, ...] = ()
    outputs: tuple[dict, ...] = ()

    @cached_property
    def directives(self) -> list[str]:
        return [re.sub(r"^#\|\s*", "", ln).strip() for ln in self.source.splitlines() if ln.startswith("#|")] if self.kind == "code" else []

    @property
    def exported(self) -> bool:
        return any(re.match(r"exports?i?\b", d) for d in self.directives)

    @cached_property
    def tree(self) -> ast.Module | None:
        "The cell's syntax tree, line magics blanked; None where it does not parse."
        lines = ["pass" if re.match(r"[%!]", ln) else ln for ln in self.source.splitlines()]
        if self.kind != "code" or self.source.startswith("%%"):
            return ast.Module([], [])
        try:
            return compile("\n".join(lines), self.place, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError:
            return None

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree)) if self.tree else []

    @property
    def imports_only(self) -> bool:
        return bool(self.tree and self.tree.body) and all(isinstance(n, ast.Import | ast.ImportFrom) for n in self.tree.body)

    @property
    def lines(self) -> int:
        return sum(bool(ln.strip()) and not ln.startswith("#|") for ln in self.source.splitlines())

@dataclass(frozen=True)
class Notebook:
    "A notebook; `name` is the file's name without `.ipynb`."
    name: str
    cells: tuple[Cell, ...]
    size: int = 0

    @property
    def index(self) -> bool:
        return self.name == "index"

    @cached_property
    def number(self) -> tuple[int, str] | None:
        m = re.match(r"(\d\d)([a-z]?)_", self.name)
        return (int(m[1]), m[2]) if m else None

    @cached_property
    def modules(self) -> list[str]:
        return [d.split()[1] for c in self.cells for d in c.directives if re.match(r"default_exp\s+\S", d)]

    @property
    def module(self) -> str:
        return self.modules[0] if self.modules else ""

    @property
    def code(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == "code"]

    @property
    def exported(self) -> list[Cell]:
        return [c for c in self.code if c.exported]

    @property
    def exported_lines(self) -> int:
        return sum(c.lines for c in self.exported if not c.imports_only)

@dataclass(frozen=True)
class Module:
    "An exported file; `name` is its path inside the package, as `data.log`."
    name: str
    source: str
    tree: ast.Module = field(compare=False)

def as_notebook(name: str, nb: dict, size: int = 0) -> Notebook:
    cells = []
    for i, c in enumerate(nb["cells"]):
        source = "".join(c["source"])
        first = next((ln for ln in source.splitlines() if ln.strip() and not ln.startswith(("#|", "@"))), source.strip()[:40])
        place = f"{name}.ipynb cell {i} ({first.strip()[:40]!r})"
        cells.append(Cell(place, c["cell_type"], source, tuple(c.get("metadata", {}).get("tags", ())), tuple(c.get("outputs", ()))))
    return Notebook(name, tuple(cells), size)

def as_module(name: str, source: str) -> Module:
    return Module(name, source, ast.parse(source))

def read_notebooks(folder: Path) -> list[Notebook]:
    return [as_notebook(p.stem, json.loads(p.read_text("utf-8")), p.stat().st_size) for p in sorted(folder.glob("*.ipynb"))]

def read_modules(folder: Path) -> list[Module]:
    paths = [p for p in sorted(folder.rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]
    return [as_module(".".join(p.relative_to(folder).with_suffix("").parts), p.read_text("utf-8")) for p in paths]

# One notebook, one module

def check_names(notebooks: list[Notebook]) -> list[str]:
    "One `default_exp`, unique, equal to the file's name; no number twice."
    out = []
    for nb in notebooks:
        if nb.index:
            continue
        if len(nb.modules) != 1:
            out.append(f"{nb.name}.ipynb: {len(nb.modules)} `#| default_exp`; a notebook needs exactly one")
        if nb.number is None:
            out.append(f"{nb.name}.ipynb: rename it to NN_<module path>.ipynb (two digits, perhaps one letter)")
        elif nb.module and nb.name.split("_", 1)[1] != nb.module:
            out.append(f"{nb.name}.ipynb: its default_exp is {nb.module}; rename the file to {nb.name.split('_', 1)[0]}_{nb.module}.ipynb")
        out += [f"{c.place}: exports to another module ({d!r}); write `#| export`"
                for c in nb.code for d in c.directives if re.match(r"exports?i?\s+\S", d)]
    said = {"default_exp": [m for nb in notebooks for m in nb.modules], "number": [nb.number for nb in notebooks if nb.number]}
    for what, values in said.items():
        for v, n in Counter(values).items():
            if n > 1:
                who = ", ".join(f"{nb.name}.ipynb" for nb in notebooks if v in nb.modules or v == nb.number)
                shown = v if isinstance(v, str) else f"{v[0]:02d}{v[1]}"
                out.append(f"{who}: the same {what} {shown}; give one of them its own (a letter after the number makes room)")
    return out

def check_orphans(notebooks: list[Notebook], modules: list[Module]) -> list[str]:
    "Every module comes from the notebook that it names, and every notebook has its module."
    made_by, there = {nb.module: nb.name for nb in notebooks if nb.module}, {m.name for m in modules}
    out = [f"{name}.ipynb: no {PACKAGE}/{m.replace('.', '/')}.py; run nbdev_export" for m, name in made_by.items() if m not in there]
    for m in modules:
        said, file = re.search(r"File to edit: \S*?([^/\s]+)\.ipynb", m.source), f"{PACKAGE}/{m.name.replace('.', '/')}.py"
        if m.name not in made_by:
            out.append(f"{file}: no notebook exports it; delete it or write its notebook")
        elif not said or said[1] != made_by[m.name]:
            out.append(f"{file}: does not say that it is made from {made_by[m.name]}.ipynb; run nbdev_export")
    return out

# Imports go down

def imported(nodes: Iterable[ast.AST], modules: set[str]) -> Iterator[str]:
    "The package's modules that are imported, without the package's name; `from a import b` means a.b where that is a module, else a."
    for n in nodes:
        names = []
        if isinstance(n, ast.Import):
            names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom) and not n.level:
            names = [full if (full := f"{n.module}.{a.name}").partition(".")[2] in modules else n.module for a in n.names]
        elif isinstance(n, ast.Call) and getattr(n.func, "attr", getattr(n.func, "id", "")) in ("import_module", "__import__") and n.args:
            names = [n.args[0].value] if isinstance(n.args[0], ast.Constant) else []
        yield from (x.partition(".")[2] for x in names if isinstance(x, str) and x.startswith(f"{PACKAGE}."))

def check_imports(notebooks: list[Notebook]) -> list[str]:
    "Exported cells import from lower numbers; lessons from those and their own module; week cells from anywhere."
    made_by = {nb.module: nb for nb in notebooks if nb.module}
    packages = {m.rsplit(".", i)[0] for m in made_by for i in range(1, m.count(".") + 1)}
    out = []
    for nb in notebooks:
        if nb.index or nb.number is None:
            continue
        for c in nb.code:
            if c.tree is None:
                out.append(f"{c.place}: is not valid Python; correct it")
            if c.tree is None or "week" in c.tags:
                continue
            if any(isinstance(n, ast.ImportFrom) and n.level for n in c.nodes):
                out.append(f"{c.place}: relative import; write `from {PACKAGE}.… import`, nbdev makes it relative")
            if c.exported and not c.imports_only and any(isinstance(n, ast.Import | ast.ImportFrom) for n in c.tree.body):
                out.append(f"{c.place}: imports and code in one exported cell; put the imports into a cell of their own")
            for m in dict.fromkeys(imported(c.nodes, set(made_by))):
                who = made_by.get(m)
                if who is None and m not in packages:
                    out.append(f"{c.place}: imports {PACKAGE}.{m}, which no notebook exports; correct the name")
                elif who is nb and c.exported:
                    out.append(f"{c.place}: imports its own module in an exported cell; use the names directly")
                elif who and who is not nb and (who.number is None or who.number >= nb.number):
                    out.append(f"{c.place}: imports {PACKAGE}.{m} of {who.name}.ipynb; "
                               "imports come from lower numbers only, move the code down")
    return out

# Scale

def words(nb: Notebook) -> int:
    "Words of prose: what holds a letter in markdown cells, fenced code left out."
    prose = "\n".join(re.sub(r"^```.*?^```", "", c.source, flags=re.S | re.M) for c in nb.cells if c.kind == "markdown")
    return sum(bool(re.search(r"[^\W\d_]", w)) for w in prose.split())

def check_scale(notebooks: list[Notebook]) -> list[str]:
    "Lines, cells, words and bytes of each notebook."
    out = []
    for nb in notebooks:
        lines, n = nb.exported_lines, words(nb)
        if lines > LINES_WALL:
            out.append(f"{nb.name}.ipynb: {lines} exported lines (blank lines and import cells not counted), the wall is {LINES_WALL}; "
                       "split it over two notebooks")
        if len(nb.cells) > CELLS_WALL:
            out.append(f"{nb.name}.ipynb: {len(nb.cells)} cells, at most {CELLS_WALL}; split it over two notebooks")
        if n * 100 < WORDS_PER_100 * lines:
            out.append(f"{nb.name}.ipynb: {n} words of prose for {lines} exported lines, at least {WORDS_PER_100} per 100 = "
                       f"{-(-lines * WORDS_PER_100 // 100)}; explain the idea, the choice, the trap")
        if nb.size > BYTES_WALL:
            out.append(f"{nb.name}.ipynb: {nb.size / 1000:.0f} kB with outputs, at most {BYTES_WALL // 1000}; "
                       "show smaller tables and plots")
    return out

def check_cell_length(notebooks: list[Notebook]) -> list[str]:
    "No exported cell beyond the wall; nine of ten in the whole project within the good length. Import cells not counted."
    cells = [c for nb in notebooks for c in nb.exported if not c.imports_only]
    out = [f"{c.place}: {c.lines} lines in one exported cell, the wall is {CELL_WALL}; split it" for c in cells if c.lines > CELL_WALL]
    long = sorted((c for c in cells if c.lines > CELL_GOOD), key=lambda c: -c.lines)
    if len(long) * 10 > len(cells):
        out.append(f"{len(long)} of {len(cells)} exported cells have more than {CELL_GOOD} lines, at most one of ten may; "
                   "split some of these:")
        out += [f"    {c.place}: {c.lines} lines" for c in long]
    return out

def check_frame(notebooks: list[Notebook]) -> list[str]:
    "A title and a subtitle first, the export last."
    out = []
    for nb in notebooks:
        first = next((c for c in nb.cells if c.kind == "markdown"), None)
        text = first.source if first else ""
        if not re.match(r"# \S", text):
            out.append(f"{nb.name}.ipynb: the first markdown cell does not begin with a title; write `# Title`")
        if not re.search(r"^> \S", text, flags=re.M):
            out.append(f"{nb.name}.ipynb: the first markdown cell has no `> ` line; "
                       "write a one-line subtitle, it becomes the module's docstring")
        if not nb.index and not (nb.code and re.search(r"\bnbdev_export\(", nb.code[-1].source)):
            out.append(f"{nb.name}.ipynb: the last code cell does not export; end with `#| hide` and `import nbdev; nbdev.nbdev_export()`")
    return out

# Stages

def requirements(settings: str) -> set[str]:
    "The modules that an installed package can import: the standard library, ourselves, what settings.ini requires."
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(settings)
    names = {re.split(r"[<>=!~\[;]", r)[0].lower() for r in ini["DEFAULT"]["requirements"].split()}
    spelled = {"pyyaml": "yaml", "faiss-cpu": "faiss"}
    return {spelled.get(n, n.replace("-", "_")) for n in names} | set(sys.stdlib_module_names) | {PACKAGE, "IPython"}

def undefined(cells: list[Cell]) -> set[str]:
    "Names that the cells use and neither define nor import."
    nodes = [n for c in cells for n in c.nodes]
    known = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    known |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    known |= {(a.asname or a.name).split(".")[0] for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    known |= {n.name for n in nodes if isinstance(n, (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler)) and n.name}
    known |= set(dir(builtins)) | {"display", "get_ipython"}
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - known

def check_stages(notebooks: list[Notebook], stages: set[str], modules: set[str]) -> list[str]:
    "Stage notebooks have one parameters cell and week cells that stand alone; no other notebook has any."
    out = [f"{s}.ipynb: {PACKAGE}.stages names it, but there is no such notebook; write it or correct STAGES"
           for s in sorted(stages - {nb.name for nb in notebooks})]
    for nb in notebooks:
        parameters, weeks = [c for c in nb.code if "parameters" in c.tags], [c for c in nb.code if "week" in c.tags]
        out += [f"{c.place}: a markdown cell tagged {c.tags}; take the tags off, prose is always kept"
                for c in nb.cells if c.kind != "code" and {"parameters", "week"} & set(c.tags)]
        if nb.name not in stages:
            out += [f"{c.place}: tagged {', '.join(c.tags)} but {nb.name} is no stage; take the tag off or add it to STAGES"
                    for c in parameters + weeks]
            continue
        if len(parameters) != 1:
            out.append(f"{nb.name}.ipynb: {len(parameters)} code cells are tagged `parameters`; a stage has exactly one")
        if not weeks:
            out.append(f"{nb.name}.ipynb: no code cell is tagged `week`; a stage needs its weekly part")
        for c in parameters:
            body = c.tree.body if c.tree else []
            named = {n.id for n in c.nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            if PARAMETERS - named:
                out.append(f"{c.place}: the parameters cell lacks {', '.join(sorted(PARAMETERS - named))}; assign them")
            if c.exported or not all(isinstance(n, ast.Assign | ast.AnnAssign) for n in body):
                out.append(f"{c.place}: the parameters cell does more than assign; "
                           "papermill puts its own values after it, so move the rest")
        for c in weeks:
            if not re.match(r"#\|\s*eval:\s*false\s*(\n|$)", c.source):
                out.append(f"{c.place}: a week cell must begin with `#| eval: false`, or nbdev_test runs it")
            for n in c.nodes:
                if isinstance(n, (*FUNCTIONS, ast.ClassDef)):
                    out.append(f"{c.place}: a week cell defines {n.name}; export it above and import it from the package")
                heads = [a.name for a in n.names] if isinstance(n, ast.Import) else [getattr(n, "module", None) or ""]
                if getattr(n, "level", 0):
                    out.append(f"{c.place}: relative import; write `from {PACKAGE}.… import`")
                out += [f"{c.place}: imports {h}, which an installed {PACKAGE} lacks; import from the package or extend settings.ini"
                        for h in heads if h and h.split(".")[0] not in modules]
            if c.exported:
                out.append(f"{c.place}: a week cell is exported; take one of the two away")
        if missing := undefined(parameters + weeks):
            out.append(f"{nb.name}.ipynb: the week cells use {', '.join(sorted(missing))}, which only lessons define; "
                       "import from the package in a week cell")
    return out

# Outputs

ABSOLUTE = re.compile(r"(?:file://|(?<![\w.~/*<$})\]]))/(?:work|home|root|tmp|var|private|Users|mnt|opt|usr)\b|\b[A-Z]:\\+Users\b")
LEFT_OVER = {
    "a progress bar": re.compile(r"\d+(?:\.\d+)?\s?(?:it/s|s/it)\b|%\|"),
    "a traceback": re.compile(r"\bTraceback\b"),
    "ANSI escapes": re.compile(r"\x1b\["),
}

def texts(output: dict) -> Iterator[str]:
    "What an output shows as text; pictures and sound in base64 left out."
    yield "".join(output.get("text", ""))
    yield "\n".join(output.get("traceback", ()))
    for kind, data in output.get("data", {}).items():
        if kind == "application/vnd.jupyter.widget-view+json":
            yield "100%| a widget"
        elif not kind.startswith(("image/", "audio/", "video/")) or kind == "image/svg+xml":
            yield re.sub(r"base64,[\w+/=\s]+", "", "".join(data) if isinstance(data, list | str) else json.dumps(data))

def check_outputs(notebooks: list[Notebook]) -> list[str]:
    "No absolute path in sources or outputs; no progress bar, traceback or ANSI escape in outputs."
    out = []
    for nb in notebooks:
        for c in nb.cells:
            shown = [t for o in c.outputs for t in texts(o)]
            if m := ABSOLUTE.search(c.source):
                out.append(f"{c.place}: absolute path {m.string[m.start():][:30]!r} in the source; make it relative or use tempfile")
            for m in filter(None, map(ABSOLUTE.search, shown)):
                out.append(f"{c.place}: absolute path {m.string[m.start():][:30]!r} in its output; show the name only and run it again")
            failed = any(o.get("output_type") == "error" for o in c.outputs)
            for what, pattern in LEFT_OVER.items():
                if any(pattern.search(t) for t in shown) or (what == "a traceback" and failed):
                    out.append(f"{c.place}: {what} in its stored output; mend the cause and run it again")
    return out

# Code

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

def _dangers(n: ast.AST) -> Iterator[str]:
    "What is wrong with a node."
    if isinstance(n, ast.Import | ast.ImportFrom):
        heads = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module or ""]
        yield from (f"imports {h}; save as safetensors, npz, Parquet or JSON" for h in heads if h.split(".")[0] in PICKLES)
        if any(a.name == "*" for a in n.names):
            yield "star import; name what is used"
    elif isinstance(n, ast.Call):
        attr, name = getattr(n.func, "attr", ""), getattr(n.func, "id", "")
        of = getattr(getattr(n.func, "value", None), "id", "")
        if name in ("eval", "exec") or (of == "builtins" and attr in ("eval", "exec")):
            yield f"calls {name or attr}; write the code out or parse with ast.literal_eval"
        plain = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in n.keywords)  # only the literal True
        if attr in ("read_pickle", "to_pickle") or (of == "torch" and (attr == "save" or (attr == "load" and not plain))):
            yield f"calls {attr}, which pickles; save as safetensors, npz, Parquet or JSON, load foreign files with weights_only=True"
        if any(k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in n.keywords):
            yield "allow_pickle; save plain arrays"
        if (attr or name) == "suppress" and any(getattr(a, "id", "") in ("Exception", "BaseException") for a in n.args):
            yield "suppresses every Exception; name the error that is expected"
    elif isinstance(n, ast.ExceptHandler):
        if n.type is None:
            yield "bare `except:`; name the error that is expected"
        kinds = n.type.elts if isinstance(n.type, ast.Tuple) else [n.type]
        silent = all(isinstance(b, ast.Pass | ast.Continue) or isinstance(getattr(b, "value", None), ast.Constant) for b in n.body)
        if silent and any(getattr(k, "id", "") in ("Exception", "BaseException") for k in kinds):
            yield "`except Exception: pass` hides faults; name the error or tell the user"

def check_dangers(modules: list[Module]) -> list[str]:
    "No pickle, eval, exec, bare except, swallowed Exception, star import."
    return [f"{PACKAGE}.{m.name} line {n.lineno}: {what}" for m in modules for n in ast.walk(m.tree) for what in _dangers(n)]

def _public(m: Module) -> set[str]:
    "The names in `__all__`."
    lists = [n.value for n in m.tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    return {name for x in lists for name in ast.literal_eval(x)}

def _decorators(f: ast.AST) -> set[str]:
    return {getattr(d, "attr", getattr(d, "id", "")) for d in getattr(f, "decorator_list", ())}

def _unannotated(f: ast.FunctionDef, method: bool) -> list[str]:
    a = f.args
    args = [*a.posonlyargs, *a.args]
    args = args[1:] if method and "staticmethod" not in _decorators(f) else args
    args += [*a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return [x.arg for x in args if x.annotation is None] + (["return"] if f.returns is None and f.name != "__init__" else [])

def check_documented(modules: list[Module]) -> list[str]:
    "Everything in `__all__`: functions, classes and their public methods have a docstring and annotations, the return's included."
    out = []
    for m in modules:
        public = _public(m)
        for n in m.tree.body:
            if getattr(n, "name", "") not in public:
                continue
            where = f"{PACKAGE}.{m.name}: {n.name}"
            if not ast.get_docstring(n) and "overload" not in _decorators(n):
                out.append(f"{where} has no docstring; say in one line what it is or returns")
            if isinstance(n, FUNCTIONS) and (bare := _unannotated(n, False)):
                out.append(f"{where} lacks annotations of {', '.join(bare)}; add them")
            for f in n.body if isinstance(n, ast.ClassDef) else ():
                if not isinstance(f, FUNCTIONS) or (f.name.startswith("_") and f.name not in ("__init__", "__call__")):
                    continue
                if not f.name.startswith("_") and not ast.get_docstring(f) and not {"overload", "setter"} & _decorators(f):
                    out.append(f"{where}.{f.name} has no docstring; say in one line what it does or returns")
                if bare := _unannotated(f, True):
                    out.append(f"{where}.{f.name} lacks annotations of {', '.join(bare)}; add them")
    return out

# Only names that can mean nothing else: `week`, `score` or `genre` are also keys of facts, arrays and components.
COLUMNS = {v: k for k, v in vars(Col).items() if k.isupper() and "_" in v}

def check_columns(notebooks: list[Notebook]) -> list[str]:
    "No exported cell outside `schema` subscripts with a column's name spelled out."
    out = []
    for nb in notebooks:
        if nb.module == "schema":
            continue
        for c in nb.exported:
            inside = [n.slice for n in c.nodes if isinstance(n, ast.Subscript)]
            for _ in range(2):  # t[a], t[[a, b]], t.loc[rows, [a, b]]
                inside = [e for s in inside for e in (s.elts if isinstance(s, ast.Tuple | ast.List) else [s])]
            spelled = dict.fromkeys(s.value for s in inside if isinstance(s, ast.Constant) and isinstance(s.value, str))
            out += [f"{c.place}: [{v!r}] spells a column; write Col.{COLUMNS[v]}" for v in spelled if v in COLUMNS]
    return out

# The project

@pytest.fixture(scope="module")
def notebooks() -> list[Notebook]:
    return read_notebooks(ROOT / "nbs")

@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return read_modules(ROOT / PACKAGE)

def hold(complaints: list[str]) -> None:
    if complaints:
        pytest.fail(f"{len(complaints)} complaint(s):\n" + "\n".join(f"  {c}" for c in complaints), pytrace=False)

def test_there_is_something_to_check(notebooks, modules):
    assert len(notebooks) > 20 and len(modules) > 20 and STAGE_NOTEBOOKS

NOTEBOOK_CHECKS = [check_names, check_imports, check_scale, check_cell_length, check_frame, check_outputs, check_columns]

@pytest.mark.parametrize("check", NOTEBOOK_CHECKS)
def test_notebooks(check, notebooks):
    hold(check(notebooks))

def test_orphans(notebooks, modules):
    hold(check_orphans(notebooks, modules))

def test_stages(notebooks):
    hold(check_stages(notebooks, STAGE_NOTEBOOKS, requirements((ROOT / "settings.ini").read_text("utf-8"))))

@pytest.mark.parametrize("check", [check_dangers, check_documented])
def test_modules(check, modules):
    hold(check(modules))

# The checks themselves: a toy project that keeps every rule, then one broken rule at a time

CODE = "#| export\ndef double(x: int) -> int:\n    \"Twice x.\"\n    return 2 * x"
PARAMETERS_CELL = "workspace = '../data/sample'\nweek = ''\nrun = ''\nsettings = []"
WEEK_CELL = f"#| eval: false\nfrom {PACKAGE}.area.high import double\ndouble(len(week))"
INSTALLED = requirements("[DEFAULT]\nrequirements = pandas>=3 pyyaml>=6\n")

def toy(name: str, *cells: tuple | str, title: str = "# Toy\n\n> A toy that shows what the rules want.", last: bool = True) -> Notebook:
    "A notebook from cells: a string is code; (source, tag) tagged code; (source, 'output', output) code with an output."
    made = [{"cell_type": "markdown", "source": [title]}, {"cell_type": "code", "source": [f"#| default_exp {name.split('_', 1)[-1]}"]}]
    for c in (*cells, *(["#| hide\nimport nbdev; nbdev.nbdev_export()"] if last else [])):
        source, tag, output = (c, "", None) if isinstance(c, str) else (c[0], "", c[2]) if len(c) == 3 else (*c, None)
        kind = "markdown" if tag == "md" else "code"
        made.append({"cell_type": kind, "source": source.splitlines(True), "outputs": [output] if output else [],
                     "metadata": {"tags": [tag]} if tag not in ("", "md") else {}})
    return as_notebook(name, {"cells": made})

def stage(*week: str, parameters: str = PARAMETERS_CELL) -> Notebook:
    return toy("41_area.high", CODE, (parameters, "parameters"), *((w, "week") for w in week))

LOW = toy("10_low", CODE)
HIGH = stage(WEEK_CELL)
GOOD_MODULE = '''"""Doc."""
# File to edit: ../../nbs/41_area.high.ipynb.
__all__ = ["f", "C"]
def f(x: int, *a: str) -> int:
    "Doc."
    try:
        torch.load(a, weights_only=True)
        return model.eval()
    except ValueError:
        pass
class C:
    "Doc."
    def __init__(self, x: int): pass
    def m(self, y: int) -> None:
        "Doc."
    def _p(self, y): pass
'''

def by_name(check: Callable, nbs: list[Notebook]) -> list[str]:
    return check(nbs, {"41_area.high"}, INSTALLED) if check is check_stages else check(nbs)

def out(text: str) -> tuple:
    return "1", "output", {"output_type": "execute_result", "data": {"text/plain": [text]}}

@pytest.mark.parametrize("check", [*NOTEBOOK_CHECKS, check_stages])
def test_a_good_project_has_no_complaints(check):
    mid = toy("20_mid", f"#| export\nimport pandas as pd\n\nfrom {PACKAGE}.low import double\nfrom {PACKAGE} import low",
              f"from {PACKAGE}.mid import x\nopen('../data/x')", ("See https://a.b/home/x, `a/tmp`, 3/work and </root>.", "md"),
              out("50% done, and/or {x}/tmp"), "#| export\ndef f(t: dict) -> int:\n    \"A.\"\n    return t[Col.USER]")
    assert by_name(check, [LOW, mid, HIGH]) == []

def imports(source: str) -> list[Notebook]:
    return [LOW, toy("20_mid", source), HIGH]

BROKEN = [
    (check_names, [toy("10_low", "#| default_exp other")], "2 `#| default_exp`"),
    (check_names, [as_notebook("10_low", {"cells": []})], "0 `#| default_exp`"),
    (check_names, [replace(LOW, name="11_high")], "rename the file to 11_low.ipynb"),
    (check_names, [replace(LOW, name="low")], "NN_<module path>"),
    (check_names, [LOW, replace(LOW, name="11_low")], "the same default_exp low"),
    (check_names, [LOW, toy("10_other")], "the same number 10"),
    (check_names, [toy("10_low", "#| export other\nx = 1")], "another module"),
    (check_imports, imports(f"#| export\nfrom {PACKAGE}.area.high import double"), "lower numbers only"),
    (check_imports, imports(f"#| export\nfrom {PACKAGE}.area import high"), "lower numbers only"),
    (check_imports, imports(f"#| export\nimport {PACKAGE}.area.high as h"), "lower numbers only"),
    (check_imports, imports(f"#| export\ndef f():\n    from {PACKAGE}.area.high import double"), "lower numbers only"),
    (check_imports, imports(f"#| export\nimportlib.import_module('{PACKAGE}.area.high')"), "lower numbers only"),
    (check_imports, imports(f"from {PACKAGE}.area.high import double"), "lower numbers only"),
    (check_imports, imports(f"#| export\nfrom {PACKAGE}.mid import x"), "its own module"),
    (check_imports, imports(f"#| export\nfrom {PACKAGE}.nowhere import x"), "no notebook exports"),
    (check_imports, imports("#| export\nfrom .low import x"), "relative import"),
    (check_imports, imports("#| export\nimport os\nx = 1"), "cell of their own"),
    (check_imports, imports("#| export\ndef"), "not valid Python"),
    (check_imports, [toy("10_low", f"#| export\nfrom {PACKAGE}.mid import x"), toy("10b_mid")], "lower numbers only"),
    (check_scale, [toy("10_low", *["#| export\n" + "x = 1\n" * 41] * 10)], "410 exported lines"),
    (check_scale, [toy("10_low", *["1"] * 80)], "83 cells"),
    (check_scale, [toy("10_low", "#| export\n" + "x = 1\n" * 40)], "words of prose for 40"),
    (check_scale, [toy("10_low", "#| export\n" + "x = 1\n" * 40, ("```\n" + "word " * 100 + "\n```", "md"))], "words of prose for 40"),
    (check_scale, [replace(LOW, size=600_000)], "600 kB"),
    (check_cell_length, [toy("10_low", "#| export\n" + "x = 1\n\n" * 51, *[CODE] * 20)], "51 lines"),
    (check_cell_length, [toy("10_low", *["#| export\n" + "x = 1\n" * 26] * 2, *[CODE] * 10)], "2 of 12"),
    (check_frame, [toy("10_low", title="Toy\n\n> A toy.")], "`# Title`"),
    (check_frame, [toy("10_low", title="# Toy\n\nA toy.")], "`> ` line"),
    (check_frame, [toy("10_low", last=False)], "does not export"),
    (check_stages, [LOW], "no such notebook"),
    (check_stages, [toy("41_area.high", (WEEK_CELL, "week"))], "0 code cells are tagged `parameters`"),
    (check_stages, [toy("41_area.high", *[(PARAMETERS_CELL, "parameters")] * 2, (WEEK_CELL, "week"))], "2 code cells are tagged"),
    (check_stages, [stage()], "no code cell is tagged `week`"),
    (check_stages, [stage(WEEK_CELL, parameters="workspace = week = run = ''")], "lacks settings"),
    (check_stages, [stage(WEEK_CELL, parameters=PARAMETERS_CELL + "\nprint(run)")], "more than assign"),
    (check_stages, [stage(WEEK_CELL.removeprefix("#| eval: false\n"))], "begin with `#| eval: false`"),
    (check_stages, [stage(WEEK_CELL, "#| eval: false\ndef f(): pass")], "defines f"),
    (check_stages, [stage(WEEK_CELL, "#| eval: false\nclass F: pass")], "defines F"),
    (check_stages, [stage(WEEK_CELL, "#| eval: false\nimport nbdev")], "imports nbdev"),
    (check_stages, [stage(WEEK_CELL, "#| eval: false\nfrom .high import double")], "relative import"),
    (check_stages, [stage("#| eval: false\ndouble(1)")], "use double"),
    (check_stages, [HIGH, toy("10_low", (PARAMETERS_CELL, "parameters"))], "is no stage"),
    (check_stages, [HIGH, toy("10_low", (WEEK_CELL, "week"))], "is no stage"),
    *[(check_outputs, [toy("10_low", out(f"saved {p}"))], "in its output")
      for p in ("/work/main/x", "/home/me", "'/root'", "/tmp/tmpab12", "/Users/me/x", r"C:\Users", "file:///home/me", "<td>/home/me</td>")],
    (check_outputs, [toy("10_low", "open('/tmp/x')")], "in the source"),
    (check_outputs, [toy("10_low", ("It lies in /home/me/x.", "md"))], "in the source"),
    (check_outputs, [toy("10_low", out(" 40%|####  | 4/10"))], "a progress bar"),
    (check_outputs, [toy("10_low", out("120.5it/s"))], "a progress bar"),
    (check_outputs, [toy("10_low", out("Traceback (most recent call last)"))], "a traceback"),
    (check_outputs, [toy("10_low", ("1", "output", {"output_type": "error", "traceback": []}))], "a traceback"),
    (check_outputs, [toy("10_low", out("\x1b[31mred"))], "ANSI"),
    (check_columns, [toy("10_low", "#| export\nx = t['user_id']")], "Col.USER"),
    (check_columns, [toy("10_low", "#| export\nx = t.loc[a, ['n', 'song_id']]")], "Col.SONG"),
]

@pytest.mark.parametrize(("check", "nbs", "says"), BROKEN, ids=[f"{c.__name__}-{s}" for c, _, s in BROKEN])
def test_a_broken_notebook_is_found(check, nbs, says):
    found = by_name(check, nbs)
    assert any(says in c for c in found), f"{check.__name__} does not say {says!r} but {found}"

def test_a_good_module_has_no_complaints():
    m = as_module("area.high", GOOD_MODULE)
    assert check_dangers([m]) + check_documented([m]) + check_orphans([HIGH], [m]) == []

@pytest.mark.parametrize(("check", "source", "says"), [
    *[(check_dangers, s, "imports") for s in ("import pickle", "from pickle import dumps", "import joblib", "def f():\n    import dill")],
    (check_dangers, "eval('1')", "calls eval"), (check_dangers, "exec('1')", "calls exec"), (check_dangers, "pd.read_pickle(p)", "pickles"),
    *[(check_dangers, f"torch.load(p{how})", "pickles") for how in ("", ", weights_only=False", ", weights_only=safe", ", **safe")],
    (check_dangers, "torch.save(x, p, weights_only=True)", "pickles"), (check_dangers, "np.load(p, allow_pickle=True)", "allow_pickle"),
    (check_dangers, "try:\n    f()\nexcept:\n    raise", "bare"),
    (check_dangers, "try:\n    f()\nexcept Exception:\n    pass", "hides faults"),
    (check_dangers, "try:\n    f()\nexcept (OSError, Exception) as e:\n    ...", "hides faults"),
    (check_dangers, "with contextlib.suppress(Exception):\n    f()", "suppresses"), (check_dangers, "from os import *", "star import"),
    (check_documented, '__all__ = ["f"]\ndef f() -> int: return 1', "f has no docstring"),
    (check_documented, '__all__ = ["f"]\ndef f(x) -> int:\n    "Doc."', "annotations of x"),
    (check_documented, '__all__ = ["f"]\ndef f(*a, **k: int):\n    "Doc."', "annotations of a, return"),
    (check_documented, '__all__ = ["C"]\nclass C: pass', "C has no docstring"),
    (check_documented, '__all__ = ["C"]\nclass C:\n    "Doc."\n    def m(self) -> int: return 1', "C.m has no docstring"),
    (check_documented, '__all__ = ["C"]\nclass C:\n    "Doc."\n    def m(self, x):\n        "Doc."', "C.m lacks annotations of x, return"),
    (check_documented, '__all__ = ["C"]\nclass C:\n    "Doc."\n    def __init__(self, x): pass', "__init__ lacks annotations of x"),
])
def test_broken_code_is_found(check, source, says):
    found = check([as_module("area.high", source)])
    assert any(says in c for c in found), f"{check.__name__} does not say {says!r} but {found}"

def test_orphans_are_found():
    high, low = as_module("area.high", GOOD_MODULE), as_module("low", GOOD_MODULE)
    assert "no notebook exports it" in check_orphans([HIGH], [high, low])[0]
    assert "run nbdev_export" in check_orphans([HIGH, LOW], [high])[0]
    assert "does not say that it is made from 10_low" in check_orphans([HIGH, LOW], [high, low])[0]
