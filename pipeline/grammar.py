"""The grammar of expressions (``$``) that a plain bundle needs; whatever is outside of it has its reason named.

A text is parsed and looked at, never evaluated. The lists say what is known to be harmless.
"""

from __future__ import annotations

import ast
import builtins
import re

BUILTINS = frozenset(
    [
        "abs",
        "all",
        "any",
        "bool",
        "dict",
        "enumerate",
        "float",
        "int",
        "len",
        "list",
        "max",
        "min",
        "range",
        "reversed",
        "round",
        "set",
        "sorted",
        "str",
        "sum",
        "tuple",
        "zip",
    ]
)
FUNCTIONS = frozenset(
    [
        "glob.glob",
        "monai.data.decollate_batch",
        "monai.data.list_data_collate",
        "monai.data.load_decathlon_datalist",
        "monai.data.no_collation",
        "monai.data.utils.no_collation",
        "monai.handlers.from_engine",
        "monai.utils.set_determinism",
        "np.pi",
        "os.path.basename",
        "os.path.dirname",
        "os.path.exists",
        "os.path.isfile",
        "os.path.join",
        "torch.FloatTensor",
        "torch.cat",
        "torch.cuda.device_count",
        "torch.cuda.is_available",
        "torch.device",
        "torch.ones",
        "torch.stack",
        "torch.tensor",
        "torch.where",
        "torch.zeros",
    ]
)
"""By their whole path; of modules nothing else may be used, but number types and enumerations."""
TYPES = frozenset(
    f"{root}.{name}"
    for root in ("torch", "np", "numpy")
    for name in (
        [
            "float",
            "float16",
            "float32",
            "float64",
            "half",
            "double",
            "bfloat16",
            "int",
            "int8",
            "int16",
            "int32",
            "int64",
            "long",
            "uint8",
            "bool",
            "pi",
        ]
    )
)
METHODS = frozenset(
    [
        "all",
        "any",
        "argmax",
        "clone",
        "cpu",
        "cuda",
        "detach",
        "dim",
        "dtype",
        "endswith",
        "eval",
        "float",
        "get",
        "int",
        "items",
        "keys",
        "long",
        "lower",
        "max",
        "mean",
        "meta",
        "min",
        "ndim",
        "parameters",
        "permute",
        "reshape",
        "run",
        "shape",
        "size",
        "split",
        "squeeze",
        "startswith",
        "strip",
        "sum",
        "to",
        "transforms",
        "transpose",
        "unsqueeze",
        "upper",
        "values",
    ]
)
"""Attributes of what an expression is given: of references, arguments and results."""
ROOTS = frozenset(["torch", "np", "numpy", "monai", "os", "glob", "ignite", "json", "copy", "sys", "pathlib"])
"""Names of modules."""
IMPORTS = frozenset({*ROOTS, "numpy as np"} - {"np"})
"""A module may be named; what of it may be used the lists say."""
ENUMS = re.compile(r"monai\.utils\.[A-Z][A-Za-z]+\.[A-Z_]+")
ONE_BY_ONE = {"setattr(torch.backends.cudnn, 'benchmark', True)"}
NODES = frozenset(
    [
        "Add",
        "And",
        "Attribute",
        "BinOp",
        "BoolOp",
        "Call",
        "Compare",
        "Constant",
        "Dict",
        "DictComp",
        "Div",
        "Eq",
        "Expression",
        "FloorDiv",
        "GeneratorExp",
        "Gt",
        "GtE",
        "IfExp",
        "In",
        "Is",
        "IsNot",
        "Lambda",
        "List",
        "ListComp",
        "Load",
        "Lt",
        "LtE",
        "Mod",
        "Mult",
        "Name",
        "Not",
        "NotEq",
        "NotIn",
        "Or",
        "Set",
        "SetComp",
        "Slice",
        "Starred",
        "Store",
        "Sub",
        "Subscript",
        "Tuple",
        "UAdd",
        "USub",
        "UnaryOp",
        "arg",
        "arguments",
        "comprehension",
        "keyword",
    ]
)
"""Kinds of ``ast`` nodes."""
REFERENCE = re.compile(r"@(?:\w|#|::)+")
MOST_CHARACTERS = 4000


def expression_fault(text: str) -> str:
    """Why an expression is not taken, empty for one of the grammar.

    Args:
        text: without its ``$``.
    """
    text = text.strip()
    if text.startswith(("import ", "from ")):
        wanted = text.removeprefix("import ")
        return "" if wanted in IMPORTS else f"imports {wanted[:60]!r}"
    if len(text) > MOST_CHARACTERS or not text.isascii():
        return f"an expression of {len(text)} characters, or of letters beyond ASCII, which Python may read as others"
    names: list[str] = []

    def named(match: re.Match[str]) -> str:
        names.append(match[0])
        return f"reference_{len(names)}"

    replaced = REFERENCE.sub(named, text)
    odd = re.search("[@#]|::", replaced) or any(name[1] in "#:" for name in names)
    if odd or "reference_" in text or "__local_refs" in text:
        return "a '#', '::' or '@' that belongs to no reference by name, or a name that stands for one here"
    try:
        tree = ast.parse(replaced, mode="eval")
        once = ast.unparse(tree) in ONE_BY_ONE
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"no expression ({type(error).__name__}): {text[:60]!r}"
    return "" if once else _reference_fault(tree, names) or _tree_fault(tree)


def _reference_fault(tree: ast.Expression, names: list[str]) -> str:
    """MONAI puts code in the place of a reference wherever it stands, within a text as well."""
    read = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    for number, name in enumerate(names, 1):
        if read.count(f"reference_{number}") != 1:
            return f"the reference {name!r} within a text, or as a name"
    return ""


def _tree_fault(tree: ast.Expression) -> str:
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    odd = {name for name in bound if name.startswith("_") or name in vars(builtins) or name in ROOTS}
    if odd:
        return f"binds {sorted(odd)[0]!r}"
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if type(node).__name__ not in NODES:
            return f"{type(node).__name__} in an expression"
        reason = ""
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            reason = _attribute_fault(node, bound)
        elif isinstance(node, ast.Name) and id(node) not in inner and isinstance(node.ctx, ast.Load):
            reason = _name_fault(node.id, bound)
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and abs(node.value) > 10**9:
            reason = f"the number {node.value:.3g}"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            reason = _repetition_fault(node)
        if reason:
            return reason
    return ""


def _name_fault(name: str, bound: set[str]) -> str:
    known = name in bound or name in BUILTINS or name in ("True", "False", "None") or name.startswith("reference_")
    return "" if known else f"the name {name!r}"


def _attribute_fault(node: ast.Attribute, bound: set[str]) -> str:
    """Of a whole dotted chain: a path from a module must be listed, an attribute of anything else as well."""
    parts: list[str] = []
    value: ast.expr = node
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    parts.reverse()
    if isinstance(value, ast.Name) and value.id in ROOTS and value.id not in bound:
        path = ".".join([value.id, *parts])
        return "" if path in FUNCTIONS | TYPES or ENUMS.fullmatch(path) else f"{path!r}"
    if isinstance(value, ast.Name):
        reason = _name_fault(value.id, bound)
        if reason or value.id in BUILTINS:
            return reason or f"{value.id}.{parts[0]}"
    odd = [part for part in parts if part not in METHODS]
    return f"the attribute {odd[0]!r}" if odd else ""


def _repetition_fault(node: ast.BinOp) -> str:
    """Text, lists and tuples times a number: a few characters that ask for all the memory there is."""
    for one, other in ((node.left, node.right), (node.right, node.left)):
        text = isinstance(one, (ast.List, ast.Tuple)) or (
            isinstance(one, ast.Constant) and isinstance(one.value, (str, bytes))
        )
        few = isinstance(other, ast.Constant) and isinstance(other.value, int) and other.value <= 1000
        if text and not few:
            return "text or a list, repeated"
    return ""
