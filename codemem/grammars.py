"""Tables for `syntax` and `unfinished`: which file name means which language, which nodes of a grammar define
something, and which tokens open a block.

Language names are those of tree-sitter-language-pack 0.13. Typst is left out: its scanner ends the process with
a segmentation fault on deep nesting.
"""

from __future__ import annotations


def _by_word(words_of: dict[str, str]) -> dict[str, str]:
    """{language: "word word"} turned round to {word: language}."""
    return {word: language for language, words in words_of.items() for word in words.split()}


FILE_NAMES = _by_word({
    "starlark": "BUILD BUILD.bazel WORKSPACE WORKSPACE.bazel", "cmake": "CMakeLists.txt",
    "dockerfile": "Containerfile Dockerfile", "make": "GNUmakefile Makefile makefile",
    "ruby": "Gemfile Rakefile Podfile Vagrantfile Fastfile", "groovy": "Jenkinsfile",
    "python": "SConstruct SConscript", "gomod": "go.mod", "meson": "meson.build meson_options.txt",
    "bash": ".bashrc .bash_profile .profile .zshrc PKGBUILD", "vim": ".vimrc",
})  # fmt: skip

EXTENSIONS = _by_word({
    "python": ".py .pyi .pyw", "javascript": ".js .mjs .cjs .jsx", "typescript": ".ts .mts .cts",
    "tsx": ".tsx", "go": ".go", "rust": ".rs", "java": ".java", "kotlin": ".kt .kts", "c": ".c .h",
    "cpp": ".cc .cpp .cxx .c++ .hh .hpp .hxx .ipp .inl", "cuda": ".cu .cuh", "csharp": ".cs",
    "ruby": ".rb .rake .gemspec", "php": ".php", "swift": ".swift", "scala": ".scala .sc .sbt",
    "lua": ".lua", "luau": ".luau", "bash": ".sh .bash .zsh", "fish": ".fish", "sql": ".sql",
    "html": ".html .htm", "css": ".css", "scss": ".scss", "vue": ".vue", "svelte": ".svelte",
    "astro": ".astro", "markdown": ".md .mdx .markdown", "rst": ".rst", "toml": ".toml",
    "yaml": ".yaml .yml", "json": ".json .jsonc .json5", "xml": ".xml", "ini": ".ini .cfg",
    "properties": ".properties", "dockerfile": ".dockerfile", "make": ".mk", "cmake": ".cmake",
    "haskell": ".hs", "ocaml": ".ml", "ocaml_interface": ".mli", "elixir": ".ex .exs",
    "erlang": ".erl .hrl", "dart": ".dart", "r": ".r", "julia": ".jl", "zig": ".zig", "nix": ".nix",
    "terraform": ".tf .tfvars", "hcl": ".hcl", "proto": ".proto", "thrift": ".thrift",
    "graphql": ".graphql .gql", "prisma": ".prisma", "solidity": ".sol", "perl": ".pl .pm",
    "powershell": ".ps1 .psm1", "groovy": ".groovy .gradle", "objc": ".m .mm",
    "clojure": ".clj .cljs .cljc", "fsharp": ".fs", "fsharp_signature": ".fsi", "elm": ".elm",
    "elisp": ".el", "commonlisp": ".lisp", "scheme": ".scm", "racket": ".rkt", "gdscript": ".gd",
    "gleam": ".gleam", "haxe": ".hx", "d": ".d", "nim": ".nim", "pascal": ".pas", "fortran": ".f90 .f95 .f",
    "ada": ".adb .ads", "verilog": ".v .sv", "vhdl": ".vhd .vhdl", "asm": ".asm .s",
    "glsl": ".glsl .vert .frag", "hlsl": ".hlsl", "wgsl": ".wgsl", "vim": ".vim", "tcl": ".tcl",
    "starlark": ".bzl", "bicep": ".bicep", "odin": ".odin", "purescript": ".purs", "latex": ".tex",
    "rego": ".rego", "jsonnet": ".jsonnet .libsonnet",
})  # fmt: skip

# Programs of a first line such as `#!/usr/bin/env python3`, version digits removed.
INTERPRETERS = _by_word({
    "python": "python pypy", "javascript": "node", "typescript": "deno bun ts-node",
    "bash": "sh bash dash ksh zsh", "fish": "fish", "ruby": "ruby", "perl": "perl", "php": "php",
    "lua": "lua luajit", "r": "Rscript", "julia": "julia", "make": "make", "tcl": "tclsh",
    "elixir": "elixir", "erlang": "escript", "powershell": "pwsh", "groovy": "groovy", "scala": "scala",
})  # fmt: skip

_CODE_VALUE = "[(arrow_function) (function_expression) (generator_function) (class)]"

_JAVASCRIPT = (
    "function_declaration",
    "generator_function_declaration",
    "class_declaration",
    "method_definition",
    f"(lexical_declaration (variable_declarator name: (identifier) @name value: {_CODE_VALUE})) @definition",
    f"(variable_declaration (variable_declarator name: (identifier) @name value: {_CODE_VALUE})) @definition",
    f"(assignment_expression left: (member_expression) @name right: {_CODE_VALUE}) @definition",
    f"(pair key: (property_identifier) @name value: {_CODE_VALUE}) @definition",
)

_TYPESCRIPT = (
    *_JAVASCRIPT,
    "function_signature",
    "abstract_class_declaration",
    "interface_declaration",
    "enum_declaration",
    "type_alias_declaration",
    "internal_module",
    "module",
    f"(public_field_definition name: (_) @name value: {_CODE_VALUE}) @definition",
)

_C = (
    "function_definition",
    "(struct_specifier body: (_)) @definition",
    "(union_specifier body: (_)) @definition",
    "(enum_specifier body: (_)) @definition",
    "(type_definition type: (struct_specifier body: (_))) @definition",
    "(type_definition type: (union_specifier body: (_))) @definition",
    "(type_definition type: (enum_specifier body: (_))) @definition",
    "preproc_function_def",
)

_CPP = (
    *_C,
    "(class_specifier body: (_)) @definition",
    "namespace_definition",
    "concept_definition",
)

# A row is either a node type, whose name syntax.py finds, or a query that captures @definition and, where the
# name is not the node's own, one @name for each part of it. Grammars without a row are read by the names of
# their node types.
DEFINITIONS: dict[str, tuple[str, ...]] = {
    "python": ("function_definition", "class_definition"),
    "starlark": ("function_definition",),
    "javascript": (
        *_JAVASCRIPT,
        f"(field_definition property: (_) @name value: {_CODE_VALUE}) @definition",
    ),
    "typescript": _TYPESCRIPT,
    "tsx": _TYPESCRIPT,
    "go": (
        "function_declaration",
        "(method_declaration receiver: (parameter_list (parameter_declaration type: ["
        "(type_identifier) @name (generic_type type: (_) @name) (pointer_type (type_identifier) @name)"
        " (pointer_type (generic_type type: (_) @name))])) name: (_) @name) @definition",
        "type_spec",
        "type_alias",
    ),
    "rust": (
        "function_item",
        "function_signature_item",
        "struct_item",
        "enum_item",
        "union_item",
        "trait_item",
        "(mod_item body: (_)) @definition",
        "macro_definition",
        "(impl_item type: (_) @name) @definition",
    ),
    "java": (
        "class_declaration",
        "interface_declaration",
        "enum_declaration",
        "record_declaration",
        "annotation_type_declaration",
        "method_declaration",
        "constructor_declaration",
        "compact_constructor_declaration",
    ),
    "c": _C,
    "cpp": _CPP,
    "cuda": _CPP,
    "csharp": (
        "namespace_declaration",
        "class_declaration",
        "struct_declaration",
        "interface_declaration",
        "enum_declaration",
        "record_declaration",
        "delegate_declaration",
        "method_declaration",
        "constructor_declaration",
        "property_declaration",
        "local_function_statement",
    ),
    "ruby": ("module", "class", "method", "singleton_method"),
    "php": (
        "(namespace_definition body: (_)) @definition",
        "class_declaration",
        "interface_declaration",
        "trait_declaration",
        "enum_declaration",
        "function_definition",
        "method_declaration",
    ),
    "lua": (
        "function_declaration",
        "(assignment_statement (variable_list name: (_) @name)"
        " (expression_list value: (function_definition))) @definition",
    ),
    "elixir": (
        "((call target: (identifier) @kind (arguments . [(alias) (identifier)] @name)) @definition"
        ' (#any-of? @kind "defmodule" "defprotocol" "defimpl" "def" "defp" "defmacro" "defmacrop"))',
        "((call target: (identifier) @kind (arguments . (call target: (identifier) @name))) @definition"
        ' (#any-of? @kind "def" "defp" "defmacro" "defmacrop"))',
    ),
    "erlang": ("(fun_decl clause: (function_clause name: (_) @name)) @definition",),
    "haskell": (
        "(function name: (_)) @definition",
        "(bind name: (_)) @definition",
        "data_type",
        "newtype",
        "class",
    ),
    "ocaml": (
        "(value_definition (let_binding pattern: (value_name) @name)) @definition",
        "(module_definition (module_binding (module_name) @name)) @definition",
        "(type_definition (type_binding name: (_) @name)) @definition",
    ),
    "julia": (
        "(function_definition (signature (call_expression . (_) @name))) @definition",
        "(struct_definition (type_head . (_) @name)) @definition",
        "module_definition",
    ),
    "zig": (
        "(Decl (FnProto function: (IDENTIFIER) @name)) @definition",
        "(Decl (VarDecl variable_type_function: (IDENTIFIER) @name"
        " (ErrorUnionExpr (SuffixExpr (ContainerDecl))))) @definition",
    ),
    "proto": (
        "(message (message_name) @name) @definition",
        "(service (service_name) @name) @definition",
        "(rpc (rpc_name) @name) @definition",
        "(enum (enum_name) @name) @definition",
    ),
    "objc": (
        "(class_interface . (identifier) @name) @definition",
        "(class_implementation . (identifier) @name) @definition",
        "(method_definition (identifier) @name) @definition",
        "function_definition",
    ),
    "clojure": ('((list_lit . value: (sym_lit) @kind . value: (sym_lit) @name) @definition (#match? @kind "^def"))',),
    "r": ("(binary_operator lhs: (identifier) @name rhs: (function_definition)) @definition",),
}

# Nodes around a definition that start and end with it: decorators, export, template parameters.
WRAPPERS = frozenset(
    {
        "decorated_definition",
        "export_statement",
        "ambient_declaration",
        "template_declaration",
        "type_declaration",
    }
)

_JAVASCRIPT_BLOCKS = {"{": "statement_block class_body switch_body", ":": "switch_case switch_default"}
_TYPESCRIPT_BLOCKS = {**_JAVASCRIPT_BLOCKS, "{": _JAVASCRIPT_BLOCKS["{"] + " interface_body enum_body object_type"}
_C_BLOCKS = {
    "{": "compound_statement field_declaration_list enumerator_list declaration_list",
    ":": "case_statement",
}

# {language: {token: nodes of which it opens a block that is to be filled}}. Where a token is in no such node, as the
# bracket of an array or the colon of a lambda, what it opens is part of a statement. The other grammars are not asked.
BLOCKS: dict[str, dict[str, str]] = {
    "python": {
        ":": "function_definition class_definition if_statement elif_clause else_clause for_statement while_statement"
        " try_statement except_clause finally_clause with_statement match_statement case_clause"
    },
    "starlark": {":": "function_definition if_statement elif_clause else_clause for_statement"},
    "javascript": _JAVASCRIPT_BLOCKS,
    "typescript": _TYPESCRIPT_BLOCKS,
    "tsx": _TYPESCRIPT_BLOCKS,
    "go": {
        "{": "block field_declaration_list interface_type expression_switch_statement type_switch_statement"
        " select_statement",
        ":": "expression_case type_case communication_case default_case",
    },
    "rust": {"{": "block match_block declaration_list field_declaration_list enum_variant_list"},
    "java": {
        "{": "block constructor_body class_body interface_body enum_body annotation_type_body module_body switch_block",
        ":": "switch_block_statement_group",
    },
    "c": _C_BLOCKS,
    "cpp": _C_BLOCKS,
    "cuda": _C_BLOCKS,
    "csharp": {
        "{": "block declaration_list enum_member_declaration_list accessor_list switch_body switch_expression",
        ":": "switch_section",
    },
}

# Of these the ones whose blocks end with their indentation.
INDENTED = frozenset({"python", "starlark"})

# What a string of these grammars begins and ends with, if it ends with its line, and if it need not.
QUOTES: dict[str, tuple[str, str]] = {
    "python": ("\" '", "\"\"\" '''"),
    "starlark": ("\" '", "\"\"\" '''"),
    "javascript": ("\" '", "`"),
    "typescript": ("\" '", "`"),
    "tsx": ("\" '", "`"),
    "go": ('"', "`"),
    "rust": ("", '"'),  # an apostrophe may be a lifetime's
    "java": ('"', '"""'),
    "c": ("\" '", ""),
    "cpp": ("\" '", ""),
    "cuda": ("\" '", ""),
    "csharp": ("\" '", ""),
}
