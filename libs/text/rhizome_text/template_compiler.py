"""The code that Jinja generates for chat templates: loops, joins and the like ask the environment first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators


class BudgetedCode(CodeGenerator):
    """Calls methods of `ChatTemplateEnvironment` where Jinja would write a bare Python operator."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop_bodies: set[int] = set()

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: D102, N802
        self._loop_bodies.add(id(node.body))
        super().visit_For(node, frame)

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:  # noqa: D102
        if id(body) in self._loop_bodies:
            self.writeline("environment.tick()")
        super().blockvisit(body, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: D102, N802
        self._call("add", frame, node.left, node.right)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: D102, N802
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat([")
        for item in node.nodes:
            self.write("environment.text(")
            self.visit(item, frame)
            self.write("), ")
        self.write("])")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: D102, N802
        self._wrap("sliced", isinstance(node.arg, nodes.Slice), super().visit_Getitem, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: D102, N802
        self._wrap("nested", not _is_constant(node), super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: D102, N802
        wanted = node.ctx == "load" and not _is_constant(node)
        self._wrap("nested", wanted, super().visit_Tuple, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: D102, N802
        self._wrap("nested", True, super().visit_Dict, node, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: D102, N802
        if any(map(_is_constant, (node.expr, *(operand.expr for operand in node.ops)))):
            super().visit_Compare(node, frame)
            return
        self.write("(")
        self._call("comparable", frame, node.expr)
        for operand in node.ops:
            self.write(f" {operators[operand.op]} ")
            self._call("comparable", frame, operand.expr)
        self.write(")")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write("environment.text(")

    def _call(self, method: str, frame: Frame, *args: nodes.Expr) -> None:
        self.write(f"environment.{method}(")
        for arg in args:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")")

    def _wrap(self, method: str, wanted: bool, visit: Any, node: nodes.Expr, frame: Frame) -> None:
        if wanted:
            self.write(f"environment.{method}(")
        visit(node, frame)
        if wanted:
            self.write(")")


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(map(_is_constant, node.items))
    return isinstance(node, nodes.Const)
