"""The files that ``cloudq deploy`` and ``cloudq init`` write: a folder of templates per target, and how values are put into them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloudq.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render", "sources"]

SUFFIX: Final = ".j2"
"""Of a template's name; any other file is copied as it is."""


def render(target: str, values: Mapping[str, Any], overrides: Path | None = None, *, also: Iterable[str] = ()) -> dict[str, str]:
    """The files of ``target``, and ``also`` those of others, by their paths in the folder that they go to.

    The same values give the same bytes. A file in the folder ``overrides`` stands for the one of its name, or is one more. Templates have
    the delimiters ``[[ ]]``, ``[% %]`` and ``[# #]``; a name that they use and ``values`` has not is an error. What begins with ``_`` is a
    part of others, and what renders to nothing is not written. Raises ConfigError, which names the template and its line.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    texts = sources((target, *also), overrides)
    environment = _environment(tuple(texts.items()))
    written: dict[str, str] = {}
    for name, text in sorted(texts.items()):
        if name.rpartition("/")[2].startswith("_"):
            continue
        if name.endswith(SUFFIX):
            try:
                text = environment.get_template(name).render(values)
            except TemplateSyntaxError as error:
                raise ConfigError(f"the template {error.name or name}, line {error.lineno}: {error.message}") from error
            except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
                raise ConfigError(f"the template {name}{_line(error)}: {error}") from error
        if text.strip():
            written[name.removesuffix(SUFFIX)] = text
    return written


def sources(targets: Iterable[str], overrides: Path | None = None) -> dict[str, str]:
    """The files that ``render`` reads, by their paths. Raises ConfigError where one cannot be read, or ``overrides`` is no folder."""
    found = {name: text for target in targets for name, text in _texts(files(__name__).joinpath(target), "")}
    if overrides is not None:
        if not overrides.is_dir():
            raise ConfigError(f"{overrides} is no folder; templates of your own are files in one, named as the ones that they stand for")
        try:
            found |= {
                path.relative_to(overrides).as_posix(): path.read_text("utf-8") for path in sorted(overrides.rglob("*")) if path.is_file()
            }
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"a template in {overrides} cannot be read: {error}") from error
    return found


def _texts(folder: Traversable, before: str) -> Iterator[tuple[str, str]]:
    for each in folder.iterdir():
        if each.is_dir():
            if each.name != "__pycache__":
                yield from _texts(each, f"{before}{each.name}/")
        else:
            yield before + each.name, each.read_text("utf-8")


@lru_cache(maxsize=8)  # compiling templates takes longer than all else
def _environment(texts: tuple[tuple[str, str], ...]) -> Environment:
    """Jinja2 in which each value is quoted as JSON, by itself: a template can write a bare value only by a filter that checks it."""
    from jinja2 import DictLoader, Environment, StrictUndefined, Undefined
    from markupsafe import Markup

    def quoted(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(_json(there(value)))

    def there(value: Any) -> Any:
        if isinstance(value, Undefined):
            str(value)  # raises, with the name
        return value

    def structure(value: Any, indent: int = 0) -> Markup:
        return Markup(_json(there(value), indent=2).replace("\n", "\n" + " " * indent))

    def bare(value: Any) -> Markup:
        text = str(value)
        if not _BARE.fullmatch(text):
            raise ValueError(f"{text!r} cannot stand without quotes")
        return Markup(text)

    def comment(value: Any) -> Markup:
        return Markup("".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(value)))

    def compose(value: Any) -> Markup:
        return Markup(_json(there(value)).replace("$", "$$"))

    environment = Environment(
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[[",
        variable_end_string="]]",
        comment_start_string="[#",
        comment_end_string="#]",
        loader=DictLoader(dict(texts)),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=quoted,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: Any = environment.filters
    for name in environment.filters.keys() - _FILTERS:
        del filters[name]
    filters.update(json=structure, bare=bare, comment=comment, compose=compose)
    return environment


_FILTERS: Final = frozenset({"default", "items", "join", "length", "map", "selectattr", "sort"})
"""Those of Jinja2's that templates may use: none of them makes text of a value, which would be quoted no more."""
_BARE: Final = re.compile(r"[A-Za-z0-9_./:@-]+")


def _json(value: Any, indent: int | None = None) -> str:
    """JSON that is YAML, too. What is not printable is escaped, since YAML refuses it; all else is written as it is, since YAML 1.1 reads a
    pair of escaped surrogates as two characters. Raises TypeError for what has no JSON form, an undefined value among them."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_ODD: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def _line(error: BaseException) -> str:
    """Where in the template an error came up."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return found
