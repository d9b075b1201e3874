"""Show a field of options by its default and its help, not by the call that makes it, and what a room hands on."""

import ast
from typing import Any

import griffe


class Options(griffe.Extension):
    """Reads ``name: int = option(4, help="...")`` as ``name: int = 4``, with its help as its docstring.

    And ``from room._file import name as name`` as an entry of ``__all__``, which is one when the program runs.
    """

    def on_module_members(self, *, node: ast.AST | griffe.ObjectNode, mod: griffe.Module, **_: Any) -> None:
        """List them."""
        if not isinstance(node, ast.Module):
            return
        imports = (each for each in ast.walk(node) if isinstance(each, ast.ImportFrom))
        names = [alias.name for each in imports for alias in each.names if alias.asname == alias.name]
        if names:
            mod.exports = [*names, *({"__version__"} & mod.members.keys())]

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Replace the call."""
        call = attr.value
        if not isinstance(call, griffe.ExprCall) or str(call.function) != "option":
            return
        named = {word.name: word.value for word in call.arguments if isinstance(word, griffe.ExprKeyword)}
        given = [word for word in call.arguments if not isinstance(word, griffe.ExprKeyword)]
        attr.value = given[0] if given else f"{named['factory']}()" if "factory" in named else None
        described = attr.parent.docstring is not None and "Attributes:" in attr.parent.docstring.value
        # Of options that two commands share, the words stand with them, in the package.
        if attr.docstring is None and not described and "help" in named:
            attr.docstring = griffe.Docstring(str(named["help"]).strip("'\""), parent=attr)
