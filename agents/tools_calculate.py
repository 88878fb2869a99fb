"""The calculator: one arithmetic expression, by simpleeval, within limits that are checked before computing."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from rag.errors import ToolError

MAX_CHARACTERS = 200
MAX_NODES = 60
MAX_DEPTH = 20
MAX_EXPONENT = 64
MAX_VALUE = 1e30

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "§", "\u00a0": " ", "\u202f": " "})
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?![\d,])")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%(?!\s*[\d(])")


def calculate(expression: str) -> str:
    """Work out one arithmetic expression, for example 54 - 48 or (1.15 * 300) / 12.

    Allowed: numbers, + - * / // % **, brackets, and abs, min, max, round, sqrt.
    """
    text = _plain(expression)
    if not text:
        raise ToolError("There is nothing to calculate. Give an expression like 54 - 48.")
    if len(text) > MAX_CHARACTERS:
        raise ToolError(f"The expression has {len(text)} characters; at most {MAX_CHARACTERS} are allowed.")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ToolError(f"This is not an arithmetic expression: {text[:60]}. Write one like 54 - 48.") from None
    _check(tree)
    return show_number(_evaluate(text))


def _plain(expression: str) -> str:
    """The expression with typographic signs, thousands separators and percent signs as Python knows them."""
    text = expression.strip().rstrip("=?.").translate(_SIGNS).replace("§", "**").strip()
    text = _THOUSANDS.sub(lambda match: match[1].replace(",", ""), text)
    return _PERCENT.sub(r"(\1/100)", text)


def _check(tree: ast.AST) -> None:
    nodes = sum(1 for _ in ast.walk(tree))
    if nodes > MAX_NODES or _depth(tree) > MAX_DEPTH:
        raise ToolError(f"The expression is too long: at most {MAX_NODES} parts, {MAX_DEPTH} deep.")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and (
            isinstance(node.value, bool) or not isinstance(node.value, (int, float))
        ):
            raise ToolError("Only numbers can be calculated with, no texts.")


def _depth(node: ast.AST) -> int:
    deepest, level = 0, [(node, 1)]
    while level:
        one, depth = level.pop()
        deepest = max(deepest, depth)
        level += [(child, depth + 1) for child in ast.iter_child_nodes(one)]
    return deepest


def _evaluate(text: str) -> float:
    from simpleeval import InvalidExpression, SimpleEval

    functions: dict[str, Callable[..., Any]] = {
        "abs": abs, "min": _few(min), "max": _few(max), "round": round, "sqrt": math.sqrt,
    }  # fmt: skip
    operators: dict[type[ast.AST], Callable[..., Any]] = {
        ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: _power, ast.USub: operator.neg,
        ast.UAdd: operator.pos,
    }  # fmt: skip
    try:
        value = SimpleEval(operators=_bounded(operators), functions=functions, names={}).eval(text)
    except ZeroDivisionError:
        raise ToolError("Division by zero has no result.") from None
    except (InvalidExpression, TypeError, ValueError, OverflowError, SyntaxError, KeyError) as error:
        raise ToolError(f"This cannot be calculated: {_reason(error)}. Use numbers and + - * / **.") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ToolError("The result is not a number.")
    return value


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:80].rstrip(".") or type(error).__name__


def _few(function: Callable[..., Any]) -> Callable[..., Any]:
    def limited(*values: float) -> Any:
        return function(values)

    return limited


def _bounded(operators: dict[type[ast.AST], Callable[..., Any]]) -> dict[type[ast.AST], Callable[..., Any]]:
    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*values: float) -> Any:
            result = function(*values)
            if isinstance(result, complex) or abs(result) > MAX_VALUE:
                raise ValueError(f"a number above {MAX_VALUE:.0e}")
            return result

        return limited

    return {node: bound(function) for node, function in operators.items()}


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_EXPONENT or (base and abs(exponent) * math.log10(max(abs(base), 1.0)) > 30):
        raise ValueError(f"a power that is too large; exponents up to {MAX_EXPONENT} are allowed")
    result: float = base**exponent
    return result


def show_number(value: float) -> str:
    """At most six significant digits behind the point, no trailing zeros; whole numbers as they are."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return str(int(value))
    return f"{round(value, 6):.6f}".rstrip("0").rstrip(".") if abs(value) >= 1e-4 else f"{value:.6g}"
