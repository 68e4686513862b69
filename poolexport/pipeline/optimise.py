"""Stage 4: passes that change how the graph is written, never what it computes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

#: In this order. None of them folds or rewrites arithmetic: a small epsilon stays where the model put it.
PASSES = (
    LiftConstantsToInitializersPass(),
    DeduplicateInitializersPass(),
    CommonSubexpressionEliminationPass(),
    IdentityEliminationPass(),
    RemoveUnusedNodesPass(),
    RemoveUnusedFunctionsPass(),
    RemoveUnusedOpsetsPass(),
    NameFixPass(),
)

#: What torch writes about the source code; it holds paths of the machine that exported the model.
PRIVATE = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


def optimise(model: ir.Model) -> ir.Model:
    """The same computation, tidier, and without source paths."""
    model = Sequential(*PASSES)(model).model
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        graph.doc_string = None
        for node in graph.all_nodes():
            for key in PRIVATE:
                node.metadata_props.pop(key, None)
    return model
