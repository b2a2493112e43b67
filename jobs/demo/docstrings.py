"""Write the docstrings of the running Python's standard library to Parquet, labelled by area.

    python jobs/demo/docstrings.py OUT_FOLDER

Every module, class and function with a docstring gives one row. The label, `area`, follows the chapters
of the Python library reference: it comes from the top-level module the object lives in (AREA_MODULES below), which
the text never names: the model sees the enclosing class, the object's own signature and the docstring.

    id     "asyncio.events:AbstractEventLoop.run_forever", unique
    text   what the model is shown, at most TEXT_BYTES bytes of UTF-8
    area   the true area

The files are OUT_FOLDER/split=train/part-0.parquet ... and OUT_FOLDER/split=heldout/part-0.parquet ...; `split`
is in the path only. It is chosen by a hash of the docstring, so a docstring held out under one Python version is held
out under all of them, and two objects that share a docstring are on the same side.

Dropped: modules in no area (tests, the encoding tables, demos, easter eggs, old byte-code shims), docstrings of
fewer than MIN_LETTERS letters, and all but the first (by id) of identical texts. Longer texts are cut at a line or
word end. Nothing is imported: the sources are only parsed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import os
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Area -> top-level modules, after the chapters of the library reference (named at the end of each first line).
AREA_MODULES: dict[str, str] = {
    # Text processing, data types, numbers, functional programming
    "data": """string re sre_compile sre_constants sre_parse difflib textwrap stringprep locale gettext codecs struct
        datetime _strptime calendar zoneinfo collections _collections_abc heapq bisect weakref _weakrefset types copy
        pprint reprlib enum graphlib numbers decimal _pydecimal fractions random statistics functools operator
        secrets uuid""",
    # Files and directories, persistence, compression, file formats, input and output
    "files": """pathlib os posixpath ntpath genericpath nturl2path stat filecmp fileinput tempfile glob fnmatch
        linecache shutil pickle pickletools _compat_pickle copyreg shelve dbm sqlite3 gzip bz2 lzma _compression zipfile
        tarfile csv configparser netrc plistlib tomllib xdrlib io _pyio aifc sunau wave chunk sndhdr imghdr
        colorsys""",
    # Operating system services, command lines and terminals
    "system": """argparse optparse getopt getpass logging curses platform ctypes cmd shlex tty pty pipes crypt time
        sched readline rlcompleter _aix_support _osx_support""",
    # Concurrent execution
    "concurrency": """threading _threading_local multiprocessing concurrent subprocess queue contextvars selectors
        signal asyncio asyncore asynchat""",
    # Internet protocols and networking
    "network": """socket ssl socketserver webbrowser wsgiref urllib http ftplib poplib imaplib smtplib smtpd nntplib
        telnetlib xmlrpc ipaddress cgi cgitb hmac hashlib""",
    # Internet data handling and structured markup
    "markup": """email json mailbox mailcap mimetypes base64 quopri uu html xml _markupbase""",
    # Graphical user interfaces
    "gui": """tkinter turtle idlelib""",
    # Development tools, debugging, profiling, packaging and distribution
    "tools": """typing pydoc doctest unittest lib2to3 bdb pdb profile cProfile pstats timeit trace tracemalloc
        distutils ensurepip venv zipapp""",
    # Runtime services, importing modules, the language itself
    "runtime": """sysconfig warnings dataclasses contextlib abc _py_abc atexit traceback inspect site _sitebuiltins code
        codeop zipimport pkgutil modulefinder runpy importlib imp ast symtable token keyword tokenize tabnanny pyclbr
        py_compile compileall dis opcode""",
}
AREAS: tuple[str, ...] = tuple(AREA_MODULES)
MODULE_AREA: dict[str, str] = {module: area for area, names in AREA_MODULES.items() for module in names.split()}

# Test code is about the thing it tests, not about its own chapter.
SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
MIN_LETTERS = 12
# A byte is at most one token of a byte-level vocabulary, so no text can overflow a 512 token context.
TEXT_BYTES = 440
HELDOUT_PERCENT = 20
PARTS = {"train": 4, "heldout": 2}
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("area", pa.string())])


@dataclass(frozen=True)
class Docstring:
    """One documented object."""

    id: str
    text: str
    area: str
    split: str


def stdlib_modules(stdlib: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of each module that has an area, in a fixed order."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or parts[0] not in MODULE_AREA:
            continue
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def parse_module(path: Path) -> ast.Module | None:
    """The module's syntax tree; None for files that are data or deliberately broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold invalid escapes
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def signature(node: Definition) -> str:
    """The object's first line as it would read in source, without decorators, defaults and annotations."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    arguments = node.args
    names = [a.arg for a in arguments.posonlyargs + arguments.args]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [a.arg for a in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{prefix} {node.name}({', '.join(names)})"


def definitions(tree: ast.AST, enclosing: tuple[Definition, ...] = ()) -> Iterator[tuple[Definition, ...]]:
    """Each class and function below `tree`, as the chain of definitions that leads to it."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, Definition):
            yield (*enclosing, child)
            yield from definitions(child, (*enclosing, child))
        else:
            yield from definitions(child, enclosing)


def split_of(docstring: str) -> str:
    """`train` or `heldout`, from the docstring's words alone."""
    digest = hashlib.sha256(" ".join(docstring.split()).encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % 100 < HELDOUT_PERCENT else "train"


def clip(text: str, limit: int) -> str:
    """Cut `text` to `limit` bytes of UTF-8, at the last line or word that fits."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    cut = raw[:limit].decode("utf-8", "ignore")
    end = max(cut.rfind("\n"), cut.rfind(" "))
    return cut[:end].rstrip() if end > limit // 2 else cut


def compose(chain: tuple[Definition, ...], docstring: str, limit: int = TEXT_BYTES) -> str:
    """What the model is shown of one object."""
    heading = [f"class {node.name}" for node in chain[:-1] if isinstance(node, ast.ClassDef)]
    heading += [signature(node) for node in chain[-1:]]
    # Indentation is layout; keeping it would only spend the byte budget.
    body = [" ".join(line.split()) for line in docstring.splitlines()]
    return clip("\n".join(heading + [line for line in body if line]), limit)


def is_trivial(docstring: str) -> bool:
    """Whether there is too little to read."""
    return sum(character.isalpha() for character in docstring) < MIN_LETTERS


def module_docstrings(name: str, tree: ast.Module) -> Iterator[Docstring]:
    """The rows of one module; an object defined twice (once per platform, say) gets a numbered id."""
    area = MODULE_AREA[name.partition(".")[0]]
    seen: dict[str, int] = {}
    for chain in [(), *definitions(tree)]:
        docstring = ast.get_docstring(chain[-1] if chain else tree)
        if docstring is None or is_trivial(docstring):
            continue
        path = ".".join(node.name for node in chain)
        row_id = f"{name}:{path}" if path else name
        seen[row_id] = seen.get(row_id, 0) + 1
        if seen[row_id] > 1:
            row_id = f"{row_id}#{seen[row_id]}"
        yield Docstring(row_id, compose(chain, docstring), area, split_of(docstring))


def extract(stdlib: Path | None = None) -> list[Docstring]:
    """All rows, ordered by id, each text once."""
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    rows: list[Docstring] = []
    for name, path in stdlib_modules(root):
        tree = parse_module(path)
        if tree is not None:
            rows.extend(module_docstrings(name, tree))
    by_text: dict[str, Docstring] = {}
    for row in sorted(rows, key=lambda row: row.id):
        by_text.setdefault(row.text, row)
    return list(by_text.values())


def parquet_bytes(rows: list[Docstring]) -> bytes:
    """One Parquet file's content; the same rows give the same bytes."""
    columns = {field: [getattr(row, field) for row in rows] for field in SCHEMA.names}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink)
    return sink.getvalue()


def write_if_changed(path: Path, content: bytes) -> None:
    """Replace `path` in one step; a file that is already right keeps its timestamp."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_split(folder: Path, split: str, rows: list[Docstring]) -> None:
    """Write one split as PARTS[split] files and remove parts that an earlier layout left."""
    parts = PARTS[split]
    target = folder / f"split={split}"
    size = -(-len(rows) // parts)
    for part in range(parts):
        write_if_changed(target / f"part-{part}.parquet", parquet_bytes(rows[part * size : (part + 1) * size]))
    expected = {f"part-{part}.parquet" for part in range(parts)}
    for stale in target.glob("part-*.parquet"):
        if stale.name not in expected:
            stale.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT_FOLDER")
    out: Path = parser.parse_args().out
    rows = extract()
    for split in PARTS:
        chosen = [row for row in rows if row.split == split]
        write_split(out, split, chosen)
        counts = ", ".join(f"{area} {sum(row.area == area for row in chosen)}" for area in AREAS)
        print(f"{split}: {len(chosen)} rows ({counts})")


if __name__ == "__main__":
    main()
