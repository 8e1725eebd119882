"""jinja's sandbox with limits: a template ends in seconds and stays small, whatever its author meant it to do.

jinja's own sandbox keeps a template away from Python; it lets it loop, and multiply strings, without end. A process of
its own for each rendering would cost more than the rendering. So the limits are compiled in:

- Each passage of a loop, a macro or a block counts as many steps as it has parts.
- What can make a text, list or number far larger than what it was given is checked before it is done: `*`, `**`, `%`,
  `~`, `+`, some methods (`center`, `replace`, `join`, `format`) and some filters. A method that isn't known can't be
  called.
- A value that holds others is measured when it is made, so that each value has a bounded size as text.

Which operation is measured where: operators in `call_binop`, methods in `call`, filters in `_bounded_filter`, output in
`finalize` and `concat`; `_BoundedCode` adds what jinja has no hook for.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinMethodType, GeneratorType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from stairdata_schemas.templating.limits import (
    ITEMS,
    SOURCE,
    Allowance,
    TemplateLimitError,
    depth,
    printf_size,
    replaced_size,
    widths_in,
)

STATEMENTS_BETWEEN_STEPS = 16
_QUERIES = frozenset(
    [
        "count",
        "endswith",
        "find",
        "index",
        "isalnum",
        "isalpha",
        "isascii",
        "isdecimal",
        "isdigit",
        "isidentifier",
        "islower",
        "isnumeric",
        "isprintable",
        "isspace",
        "istitle",
        "isupper",
        "rfind",
        "rindex",
        "startswith",
    ]
)
"""Methods of strings that make none."""
_SIMPLE_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "rpartition",
        "rstrip",
        "strip",
        "swapcase",
        "title",
        "upper",
    ]
)
"""Methods of strings whose result is no larger than three times the string."""
_SPLITS = frozenset({"split", "rsplit", "splitlines"})
_WIDTHS = frozenset({"center", "ljust", "rjust", "zfill"})
_OTHER_METHODS = frozenset(
    [
        "get",
        "items",
        "keys",
        "values",
        "copy",
        "count",
        "index",
        "bit_length",
        "bit_count",
        "is_integer",
        "conjugate",
        "start",
        "stop",
        "step",
    ]
)
"""Methods of lists, dictionaries, numbers and ranges that make nothing larger than what they belong to."""
_METHODS_OF_STRINGS = _QUERIES | _SIMPLE_METHODS | _SPLITS | _WIDTHS | {"replace", "join"}
_OF_DICTIONARIES = frozenset(dir(dict))
_OF_LOOPS = frozenset({"index", "index0", "first", "last", "length", "revindex", "revindex0"})
_OF_COMPILED_CALLS = ("_loop_vars", "_block_vars")
"""Arguments that jinja's compiler adds to calls."""
_BUILTINS: tuple[type, ...] = (
    list,
    tuple,
    dict,
    int,
    float,
    complex,
    bytes,
    range,
    type({}.items()),
    type({}.keys()),
    type({}.values()),
)
_SLOW_FILTERS = {"wordwrap": 65_536, "striptags": 65_536, "urlize": 4096, "xmlattr": 65_536, "pprint": 65_536}
"""Filters that can take time with the square of what they are given, and how many characters they take."""


class BoundedTemplate:
    """A template that others wrote; it may be used by several threads.

    Args:
        source: the template.
        options: of `jinja2.Environment`, such as `trim_blocks`.
        filters: in addition to jinja's own, or instead of them.
        names: functions that the template may call.

    Raises:
        Exception: whatever jinja or Python raise at a template that is none, and `TemplateLimitError`.
    """

    def __init__(
        self,
        source: str,
        *,
        filters: Mapping[str, Callable[..., Any]] | None = None,
        names: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if len(source) > SOURCE:
            raise TemplateLimitError(f"it has {len(source):,} characters, and {SOURCE:,} is the most")
        self._lock = threading.Lock()
        self._environment = _BoundedEnvironment(**options)
        self._environment.add_filters(filters or {})
        self._environment.globals.update(names or {})
        self._template = self._environment.from_string(source)  # constants are worked out here, so it has limits, too
        self._names = dict(self._template.globals)  # jinja would put them together anew for each rendering

    def render(self, given: int, /, **variables: Any) -> str:
        """Render the template.

        Args:
            given: characters that the variables have; the limits grow with them.
            variables: what the template may use.

        Raises:
            Exception: whatever a template may raise, and `TemplateLimitError`.
        """
        with self._lock:
            self._environment.allow(given)
            context = self._template.new_context(self._names | variables, shared=True)
            return self._environment.concat(self._template.root_render_func(context))


class _BoundedNamespace(Namespace):
    """A namespace whose text does not hold what it holds: two that hold each other would have no end."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _BoundedCode(CodeGenerator):
    """Compiles a template with its limits."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802 - jinja's name
        _count_steps(node)
        super().visit_Template(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's name
        if frame.eval_ctx.volatile:
            join = "(markup_join if context.eval_ctx.volatile else str_join)"
        else:
            join = "markup_join" if frame.eval_ctx.autoescape else "str_join"
        self.write(f"environment.concatenate({join}, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - jinja's name
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.cut(")
        super().visit_Getitem(node, frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802 - jinja's name
        self._visit_container(super().visit_List, node, node.items, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802 - jinja's name
        if node.ctx == "load":
            self._visit_container(super().visit_Tuple, node, node.items, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802 - jinja's name
        parts = [part for pair in node.items for part in (pair.key, pair.value)]
        self._visit_container(super().visit_Dict, node, parts, frame)

    def _visit_container(
        self, visit: Callable[[Any, Frame], None], node: nodes.Node, parts: list[nodes.Expr], frame: Frame
    ) -> None:
        if all(isinstance(part, nodes.Const) for part in parts):  # no larger than it stands there
            visit(node, frame)
            return
        self.write("environment.held(")
        visit(node, frame)
        self.write(")")


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    code_generator_class = _BoundedCode
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, **options: Any) -> None:
        self.allow(0)
        super().__init__(**options, finalize=self._output, optimized=False, cache_size=0)
        del self.globals["lipsum"]
        self.globals["namespace"] = _BoundedNamespace
        self.add_filters(dict(self.filters))

    def allow(self, given: int) -> None:
        """Begin a rendering."""
        self._allowance = Allowance(given)
        self.step = self._allowance.step

    def add_filters(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        self.filters.update({name: self._bounded_filter(name, function) for name, function in filters.items()})

    def held(self, value: Any) -> Any:
        """Measure a list, tuple or dictionary that a template has made."""
        self._allowance.hold(value)
        return value

    def cut(self, value: Any) -> Any:
        """Measure what a template has cut out of a string or list."""
        if isinstance(value, str):
            self._allowance.make(len(value))
        elif isinstance(value, list | tuple):
            self.step(len(value))
        return value

    def concatenate(self, join: Callable[[Iterable[Any]], str], parts: tuple[Any, ...]) -> str:
        """Do what `~` does."""
        self._allowance.make(sum(len(part) if isinstance(part, str) else self._allowance.hold(part) for part in parts))
        return join(parts)

    def _output(self, value: Any) -> Any:
        """Measure what `{{ }}` makes a text of; a text is only put in place, which `concat` measures."""
        if not isinstance(value, str):
            self._allowance.make(self._allowance.hold(value))
        return value

    def concat(self, parts: Iterable[str]) -> str:
        """Join the parts of a template, of a macro, or of a block that is set; steps have bounded their number."""
        parts = list(parts)
        self._allowance.make(sum(map(len, parts)))
        return "".join(parts)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Do what jinja's sandbox does, and sooner where it would try in vain, or look for what can't be there.

        Most of a chat template is `message.content` and such: this gains more time than the limits cost.
        """
        kind = type(obj)
        if kind is dict:
            if attribute in obj and attribute not in _OF_DICTIONARIES:
                return obj[attribute]
        elif kind is str:
            if attribute in _METHODS_OF_STRINGS:
                return getattr(obj, attribute)
        elif kind is LoopContext:
            if attribute in _OF_LOOPS:
                return getattr(obj, attribute)
        elif kind is _BoundedNamespace and attribute[0] != "_" and (found := getattr(obj, attribute, None)) is not None:
            return found
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                self._allowance.make(len(left) + len(right))
                return left + right
            if isinstance(left, list | tuple):
                self._allowance.hold((left, right))
        elif operator == "%" and isinstance(left, str):
            self._allowance.make(printf_size(left, right, self._allowance))
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._allowance.number(left.bit_length() * max(right, 0))
        return super().call_binop(context, operator, left, right)

    def _check_product(self, left: Any, right: Any) -> None:
        many, times = (right, left) if isinstance(left, int) else (left, right)
        if not isinstance(times, int):
            return
        if isinstance(many, int):
            self._allowance.number(many.bit_length() + times.bit_length())
        elif isinstance(many, str):
            self._allowance.make(len(many) * max(times, 0))
        elif isinstance(many, list | tuple):
            self._allowance.make(self._allowance.hold(many) * max(times, 0))
            if len(many) * times > ITEMS:
                raise TemplateLimitError(f"it makes a list of more than {ITEMS:,} items")

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str):
            for name in _OF_COMPILED_CALLS:
                kwargs.pop(name, None)
            return called(*self._check_method(owner, called.__name__, args, kwargs), **kwargs)
        if isinstance(owner, _BUILTINS):
            if called.__name__ not in _OTHER_METHODS:
                raise TemplateLimitError(f"it calls {called.__name__}(), which templates can't")
            self.step(len(owner) if hasattr(owner, "__len__") else 1)
        elif owner is None:
            # a class that makes a list of its arguments, or a macro that has them as one
            given = [value for name, value in kwargs.items() if name not in _OF_COMPILED_CALLS]
            if lists := [value for value in (*args, *given) if not isinstance(value, str | int | None)]:
                self._allowance.hold(lists)
        return super().call(context, called, *args, **kwargs)

    def _check_method(self, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Check a call of a string's method, and return its arguments, those that can be read once read."""
        size = len(owner)
        self.step(1 + size // 1024)
        if name in _QUERIES:
            return args
        if name in _SIMPLE_METHODS:
            self._allowance.make(size)
        elif name in _SPLITS:
            self._allowance.make(size * 8)  # a string in a list takes 50 bytes and more
        elif name in _WIDTHS:
            self._allowance.make(max([size, *(arg for arg in args if isinstance(arg, int))]))
        elif name == "replace" and all(isinstance(arg, str) for arg in args[:2]) and len(args) >= 2:
            count = args[2] if len(args) > 2 else kwargs.get("count")
            self._allowance.make(replaced_size(owner, args[0], args[1], count))
        elif name == "join" and len(args) == 1:
            parts = args[0] if isinstance(args[0], str | list | tuple | dict) else list(self._counted(args[0]))
            self._allowance.make(self._allowance.hold(parts) + size * len(parts))
            return (parts,)
        elif name == "expandtabs":
            width = max([8, *(arg for arg in (*args, *kwargs.values()) if isinstance(arg, int))])
            self._allowance.make(size + owner.count("\t") * width)
        elif name not in {"format", "format_map"}:  # these two are measured as they go, by the formatter
            raise TemplateLimitError(f"it calls {name}() in a way that templates can't")
        return args

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, MethodType | BuiltinMethodType) or value.__name__ not in {"format", "format_map"}:
            return None
        text, name = value.__self__, value.__name__
        if not isinstance(text, str):
            return None
        if isinstance(text, Markup):
            formatter: _BoundedFormatter = _BoundedEscapeFormatter(self, escape=text.escape)
        else:
            formatter = _BoundedFormatter(self)

        def call(*args: Any, **kwargs: Any) -> str:
            if name == "format_map":
                args, kwargs = (), dict(*args, **kwargs)
            self._allowance.make(len(text))
            return type(text)(formatter.vformat(text, args, kwargs))

        return call

    def _bounded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        passes = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0  # jinja's own first argument
        check = _FILTER_CHECKS.get(name)
        most = _SLOW_FILTERS.get(name)

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            allowance = self._allowance
            value, others = args[passes], args[passes + 1 :]
            if isinstance(value, str):
                size = len(value)
                allowance.step(1 + size // 64)
            else:
                if isinstance(value, GeneratorType) and name in {"join", "sum"}:
                    value = list(self._counted(value))
                    args = (*args[:passes], value, *others)
                size = len(value) if hasattr(value, "__len__") else 1  # it was measured when it was made
                allowance.step(size)
            if most is not None and (size if isinstance(value, str) else allowance.hold(value)) > most:
                raise TemplateLimitError(f"the filter {name} is given more than {most:,} characters")
            if check is not None:
                check(allowance, value, others, kwargs)
            result = function(*args, **kwargs)
            if isinstance(result, GeneratorType):
                return self._counted(result)
            if isinstance(result, str):
                allowance.make(len(result))
            elif isinstance(result, list | tuple | dict):
                allowance.hold(result)
            return result

        return bounded

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        most = ITEMS + self._allowance.largest
        for count, item in enumerate(items):
            if count > most:
                raise TemplateLimitError(f"it goes through more than {most:,} items")
            self._allowance.step(1)
            yield item


class _BoundedFormatter(SandboxedFormatter):
    _env: _BoundedEnvironment

    def format_field(self, value: Any, format_spec: str) -> Any:
        allowance = self._env._allowance
        size = len(value) if isinstance(value, str) else allowance.hold(value)
        allowance.make(size + widths_in(format_spec))
        return super().format_field(value, format_spec)


class _BoundedEscapeFormatter(SandboxedEscapeFormatter, _BoundedFormatter):
    pass


def _count_steps(template: nodes.Template) -> None:
    """Let each passage of a loop, macro or block count its parts, and each long row of statements be counted."""
    bodies: list[Any] = [
        node for node in template.find_all(nodes.Node) if isinstance(getattr(node, "body", None), list)
    ]
    for node in bodies:
        cost = sum(1 for _ in node.find_all(nodes.Node)) + 1 if not isinstance(node, nodes.Template) else 1
        repeats = isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block)
        body: list[nodes.Node] = []
        for index, statement in enumerate(node.body):
            if (index == 0 and repeats) or index % STATEMENTS_BETWEEN_STEPS == STATEMENTS_BETWEEN_STEPS - 1:
                body.append(nodes.ExprStmt(_steps(cost if index == 0 else 1), lineno=statement.lineno))
            body.append(statement)
        if repeats and not body:
            body.append(nodes.ExprStmt(_steps(cost), lineno=node.lineno))
        node.body = body
        if isinstance(node, nodes.For) and node.test is not None:  # evaluated for items that the body never sees
            node.test = nodes.And(_steps(cost), node.test, lineno=node.lineno)


def _steps(cost: int) -> nodes.EnvironmentAttribute:
    """Return an expression that takes steps off, as jinja's compiler writes it: `environment.step(7)`."""
    return nodes.EnvironmentAttribute(f"step({cost})", lineno=1)


def _argument(others: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str, default: Any) -> Any:
    return others[index] if len(others) > index else kwargs.get(name, default)


def _check_center(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    del value
    width = _argument(others, kwargs, 0, "width", 80)
    allowance.make(width if isinstance(width, int) else 0)


def _check_indent(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    width = _argument(others, kwargs, 0, "width", 4)
    lines = str(value).count("\n") + 2
    allowance.make(len(str(value)) + lines * (len(width) if isinstance(width, str) else max(int(width), 0)))


def _check_join(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    between = str(_argument(others, kwargs, 0, "d", ""))
    allowance.make(allowance.hold(value) * (1 + 6 * bool(between)) + len(between) * len(value))


def _check_replace(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    old, new = (str(_argument(others, kwargs, index, name, "")) for index, name in ((0, "old"), (1, "new")))
    allowance.make(replaced_size(str(value), old, new, _argument(others, kwargs, 2, "count", None)))


def _check_format(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    allowance.make(printf_size(str(value), dict(kwargs) or others, allowance))


def _check_rows(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    del value
    count = next((arg for arg in (*others, *kwargs.values()) if isinstance(arg, int)), 1)
    filler = allowance.hold([*others, *kwargs.values()])
    allowance.make(filler * max(count, 1))
    if not 0 < count <= ITEMS:
        raise TemplateLimitError(f"it makes rows or columns by the number {count}; from 1 to {ITEMS:,} can be made")


def _check_round(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    del value
    allowance.number(abs(int(_argument(others, kwargs, 0, "precision", 0))))


def _check_sum(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    start = _argument(others, kwargs, 1, "start", 0)
    if not isinstance(start, int | float):  # lists are copied at each addition
        allowance.make(allowance.hold([value, start]) * (len(value) + 1))


def _check_wordwrap(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    longest = max((len(arg) for arg in (*others, *kwargs.values()) if isinstance(arg, str)), default=1)
    allowance.make(len(str(value)) * (1 + longest))


def _check_json(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    size = allowance.hold(value)
    indents = [arg for arg in (*others, *kwargs.values()) if isinstance(arg, int) and not isinstance(arg, bool)]
    words = sum(len(word) for arg in (*others, *kwargs.values()) for word in _words(arg))
    before = (max(indents, default=0) + words) * (depth(value) if indents or words else 0)
    allowance.make(size * 6 + size * before)


def _words(value: Any) -> list[str]:
    return [word for word in (value if isinstance(value, list | tuple) else [value]) if isinstance(word, str)]


def _check_attributes(allowance: Allowance, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    del others, kwargs
    allowance.make(allowance.hold(value) * 12)  # four bytes, three characters each


_FILTER_CHECKS: dict[str, Callable[[Allowance, Any, tuple[Any, ...], Mapping[str, Any]], None]] = {
    "batch": _check_rows,
    "center": _check_center,
    "format": _check_format,
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "slice": _check_rows,
    "sum": _check_sum,
    "tojson": _check_json,
    "urlencode": _check_attributes,
    "wordwrap": _check_wordwrap,
    "xmlattr": _check_attributes,
}
