"""Makes the tiny ONNX models of this folder and golden.json.

    pip install onnx==1.23.2 numpy==2.4.6
    python3 make_models.py

Seeded: the same versions write the same files. The expected logits come from onnx's reference evaluator, which shares no
code with ONNX Runtime or with this project. Every model takes images [N,3,8,8]; the test makes the same pixels as
`pixels()` here.
"""

import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

HERE = pathlib.Path(__file__).parent
D, C = 6, 5
rng = np.random.default_rng(20240601)
CONV = rng.normal(0, 0.4, (D, 3, 3, 3)).astype(np.float32)
CONV_BIAS = rng.normal(0, 0.1, D).astype(np.float32)
W = rng.normal(0, 0.7, (C, D)).astype(np.float32)  # [classes, features]
B = rng.normal(0, 0.5, C).astype(np.float32)

FLOAT, FLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE


def pixels(n):
    return (((np.arange(n * 3 * 8 * 8) * 37) % 101) / np.float32(50) - np.float32(1)).astype(np.float32).reshape(n, 3, 8, 8)


def init(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=f"/{op.lower()}/{outputs[0]}", **attributes)


def body(pooled="pooled", flat="flat", flatten=True):
    """Convolution, ReLU, global average; ends in `flat`, [N,D]."""
    nodes = [
        node("Conv", ["image", "conv.weight", "conv.bias"], ["conv"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["conv"], ["relu"]),
        node("GlobalAveragePool", ["relu"], [pooled]),
    ]
    if flatten:
        nodes.append(node("Flatten", [pooled], [flat], axis=1))
    return nodes, [init("conv.weight", CONV), init("conv.bias", CONV_BIAS)]


def model(nodes, initializers, outputs, opset=17, batch="N", ir=8, inputs=(), value_info=(), functions=(), imports=()):
    image = helper.make_tensor_value_info("image", FLOAT, [batch, 3, 8, 8])
    graph = helper.make_graph(nodes, "tiny", [image, *inputs], outputs, initializers, value_info=list(value_info))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *imports], ir_version=ir,
                             producer_name="make_models", functions=list(functions))
    helper.set_model_props(made, {"trained_on": "nothing"})
    return made


def out(name="logits", kind=FLOAT, dims=("N", C)):
    return helper.make_tensor_value_info(name, kind, list(dims))


def classifier(tail, initializers, output=None, outputs=None, opset=17, **more):
    nodes, constants = body()
    return model([*nodes, *tail], [*constants, *initializers], outputs or [output or out()], opset=opset, **more)


accepted, refused = {}, {}


def accept(name, made, logits="logits", note="", tolerance=1e-5, bias=True, check=True):
    accepted[name] = (made, logits, note, tolerance, bias, check)


def refuse(name, made, *parts):
    refused[name] = (made, parts)


# --- the last layer in every spelling -------------------------------------------------------------------------------
accept("gemm_transb", classifier([node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)], [init("w", W), init("b", B)]))
accept("gemm_plain", classifier([node("Gemm", ["flat", "w", "b"], ["logits"])], [init("w", W.T), init("b", B)]))
accept("gemm_alpha_beta", classifier([node("Gemm", ["flat", "w", "b"], ["logits"], transB=1, alpha=0.5, beta=2.0)],
                                     [init("w", W), init("b", B)]), note="folded alpha")
accept("gemm_no_bias", classifier([node("Gemm", ["flat", "w"], ["logits"], transB=1)], [init("w", W)]), bias=False)
accept("gemm_row_bias", classifier([node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)], [init("w", W), init("b", B[None])]))
accept("gemm_one_bias", classifier([node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)], [init("w", W), init("b", B[:1])]))
accept("matmul", classifier([node("MatMul", ["flat", "w"], ["logits"])], [init("w", W.T)]), bias=False)
ADD = [node("MatMul", ["flat", "w"], ["product"]), node("Add", ["product", "b"], ["logits"])]
accept("matmul_add", classifier(ADD, [init("w", W.T), init("b", B)]))
accept("matmul_add_swapped", classifier([ADD[0], node("Add", ["b", "product"], ["logits"])], [init("w", W.T), init("b", B)]))
accept("matmul_add_row", classifier(ADD, [init("w", W.T), init("b", B[None])]))
accept("matmul_transpose", classifier([node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("MatMul", ["flat", "wt"], ["product"]), ADD[1]],
                                      [init("w", W), init("b", B)]))
accept("conv1x1_flatten", model(
    [*body(flatten=False)[0], node("Conv", ["pooled", "w", "b"], ["scores"], kernel_shape=[1, 1]), node("Flatten", ["scores"], ["logits"], axis=1)],
    [*body()[1], init("w", W[:, :, None, None]), init("b", B)], [out()]))

# --- what stands around it ------------------------------------------------------------------------------------------
GEMM = node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)
WB = [init("w", W), init("b", B)]
for op in ["Softmax", "LogSoftmax"]:
    accept(f"{op.lower()}", classifier([GEMM, node(op, ["logits"], ["answer"], axis=1)], WB, out("answer")), note=f"dropped a trailing {op}")
accept("softmax_opset13", classifier([GEMM, node("Softmax", ["logits"], ["answer"])], WB, out("answer"), opset=13), note="Softmax")
accept("softmax_opset11", classifier([GEMM, node("Softmax", ["logits"], ["answer"])], WB, out("answer"), opset=11, ir=6), note="Softmax")
accept("opset20", classifier([GEMM], WB, opset=20, ir=9))
accept("dropout_identity", classifier([
    node("Dropout", ["flat"], ["kept"]), node("Gemm", ["kept", "w", "b"], ["raw"], transB=1),
    node("Dropout", ["raw"], ["raw2"]), node("Identity", ["raw2"], ["logits"])], WB), logits="raw")
accept("reshape_squeeze", classifier([
    node("Reshape", ["flat", "shape"], ["row"]), node("Gemm", ["row", "w", "b"], ["raw"], transB=1),
    node("Reshape", ["raw", "shape4"], ["raw4"]), node("Squeeze", ["raw4", "axes"], ["logits"])],
    [*WB, init("shape", np.array([-1, D], np.int64)), init("shape4", np.array([0, C, 1, 1], np.int64)), init("axes", np.array([2, 3], np.int64))]),
    logits="raw")
CONV1X1 = node("Conv", ["pooled", "w", "b"], ["scores"], kernel_shape=[1, 1])


def convolution(tail, initializers=(), output=None, **more):
    return model([*body(flatten=False)[0], CONV1X1, *tail], [*body()[1], init("w", W[:, :, None, None]), init("b", B), *initializers],
                 [output or out()], **more)


def numbers(name, *values):
    return init(name, np.array(values, np.int64))


accept("conv1x1_squeeze", convolution([
    node("Softmax", ["scores"], ["shares"], axis=1), node("Squeeze", ["shares", "last"], ["column"]), node("Squeeze", ["column", "second"], ["logits"])],
    [numbers("last", -1), numbers("second", 2)]), logits="scores", note="Softmax")
accept("conv1x1_squeeze_opset11", convolution([node("Squeeze", ["scores"], ["logits"], axes=[2, 3])], opset=11, ir=6), logits="scores")
RAW = node("Gemm", ["flat", "w", "b"], ["raw"], transB=1)
for name, *target in [("reshape_inferred", -1, C), ("reshape_kept", 0, -1), ("reshape_given", 0, C)]:
    accept(name, classifier([RAW, node("Reshape", ["raw", "shape"], ["logits"])], [*WB, numbers("shape", *target)]), logits="raw")
# What x.view(x.size(0), -1) was exported as; the shape of the output is not declared.
SIZE = [node("Shape", ["scores"], ["sizes"]), node("Gather", ["sizes", "zero"], ["n"], axis=0), node("Unsqueeze", ["n", "front"], ["n1"]),
        node("Concat", ["n1", "rest"], ["shape"], axis=0), node("Reshape", ["scores", "shape"], ["logits"])]
accept("reshape_computed", convolution(SIZE, [helper.make_tensor("zero", TensorProto.INT64, [], [0]), numbers("front", 0), numbers("rest", -1)], out(dims=("N", "M"))), logits="scores")
accept("reshape_declared", convolution([
    node("Shape", ["scores"], ["sizes"]), node("Slice", ["sizes", "zero", "two"], ["shape"]), node("Reshape", ["scores", "shape"], ["rows"]),
    node("Softmax", ["rows"], ["logits"], axis=-1)], [numbers("zero", 0), numbers("two", 2)]), logits="scores", note="Softmax")
accept("cast_output", classifier([node("Gemm", ["flat", "w", "b"], ["raw"], transB=1), node("Cast", ["raw"], ["logits"], to=DOUBLE)], WB,
                                 out(kind=DOUBLE)), logits="raw", note="dropped the cast")
accept("two_outputs", classifier([GEMM], WB, outputs=[out(), out("flat", dims=("N", D))]), note="took the output `logits`")
accept("fixed_batch", classifier([GEMM], WB, out(dims=(1, C)), batch=1), check=False)

# --- where the numbers are ------------------------------------------------------------------------------------------
accept("identity_weight", classifier([node("Identity", ["w0"], ["w"]), GEMM], [init("w0", W), init("b", B)]))
accept("constant_nodes", classifier([node("Constant", [], ["w"], value=init("w_value", W)), node("Constant", [], ["b"], value_floats=B.tolist()), GEMM], []))
accept("float_list", classifier([GEMM], [helper.make_tensor("w", FLOAT, W.shape, W.flatten().tolist()), helper.make_tensor("b", FLOAT, B.shape, B.tolist())]))
accept("ir3_inputs", classifier([GEMM], WB, opset=8, ir=3, inputs=[out("w", dims=(C, D)), out("b", dims=(C,)), out("conv.weight", dims=(D, 3, 3, 3)), out("conv.bias", dims=(D,))]))
H = W.astype(np.float16)
HALF = [node("Cast", ["flat"], ["half"], to=FLOAT16), node("Gemm", ["half", "w", "b"], ["raw"], transB=1), node("Cast", ["raw"], ["logits"], to=FLOAT)]
accept("float16_layer", classifier(HALF, [init("w", H), init("b", B.astype(np.float16))]), logits="raw", note="widened from float16", tolerance=5e-3)
LIST = helper.make_tensor("w", FLOAT16, W.shape, H.flatten().tolist())
accept("float16_list", classifier(HALF, [LIST, init("b", B.astype(np.float16))]), logits="raw", note="widened from float16", tolerance=5e-3)
accept("float16_cast_weight", classifier([node("Cast", ["h"], ["w"], to=FLOAT), GEMM], [init("h", H), init("b", B)]))
accept("double_layer", classifier([node("Cast", ["flat"], ["wide"], to=DOUBLE), node("Gemm", ["wide", "w", "b"], ["raw"], transB=1), node("Cast", ["raw"], ["logits"], to=FLOAT)],
                                  [init("w", W.astype(np.float64)), init("b", B.astype(np.float64))]), logits="raw", note="rounded from double")
accept("double_list", classifier([node("Cast", ["flat"], ["wide"], to=DOUBLE), node("Gemm", ["wide", "w", "b"], ["raw"], transB=1), node("Cast", ["raw"], ["logits"], to=FLOAT)],
                                 [helper.make_tensor("w", DOUBLE, W.shape, W.flatten().tolist()), helper.make_tensor("b", DOUBLE, B.shape, B.tolist())]), logits="raw")

# --- names, subgraphs, functions ------------------------------------------------------------------------------------
nodes, constants = body(flat="features")
accept("named_features", model([*nodes, node("Gemm", ["features", "w", "b"], ["logits"], transB=1)], [*constants, *WB], [out()]))
nodes, constants = body(pooled="features")  # the name is taken by the [N,D,1,1] before it
accept("features_taken", model([*nodes, GEMM], [*constants, *WB], [out()],
                               value_info=[helper.make_tensor_value_info("features", FLOAT, ["N", D, 1, 1])]))
image_named_features = classifier([GEMM], WB)
image_named_features.graph.input[0].name = "features"
image_named_features.graph.node[0].input[0] = "features"
accept("image_named_features", image_named_features, check=False)
branch = lambda name, op: helper.make_graph([node(op, ["flat", "outer"], [f"features_{name}"]), node("Identity", [f"features_{name}"], ["features"])],
                                            name, [], [helper.make_tensor_value_info("features", FLOAT, ["N", D])])
accept("subgraph_before", classifier([
    node("If", ["flag"], ["chosen"], then_branch=branch("then", "Mul"), else_branch=branch("else", "Add")),
    node("Gemm", ["chosen", "w", "b"], ["logits"], transB=1)],
    [*WB, init("flag", np.array(True)), init("outer", np.float32(1.5).reshape(1))]))
double = helper.make_function("own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)])
accept("function_before", classifier([helper.make_node("Twice", ["flat"], ["twice"], domain="own", name="twice"), node("Gemm", ["twice", "w", "b"], ["logits"], transB=1)],
                                     WB, functions=[double], imports=[helper.make_opsetid("own", 1)]))

# --- refused, with what the message must hold -----------------------------------------------------------------------
refuse("sigmoid", classifier([node("Gemm", ["flat", "w", "b"], ["raw"], transB=1), node("Sigmoid", ["raw"], ["logits"])], WB), "/sigmoid/logits", "Sigmoid", "output `logits`", "must be Gemm")
refuse("dynamic_weight", classifier([node("Gemm", ["flat", "w", "b"], ["logits"], transB=1)], [init("b", B)],
                                    inputs=[out("w", dims=(C, D))]), "/gemm/logits", "Gemm", "`w`", "computed at run time")
refuse("computed_weight", classifier([node("Relu", ["w0"], ["w"]), GEMM], [init("w0", W), init("b", B)]), "/gemm/logits", "`w`", "not a constant")
refuse("computed_bias", classifier([node("MatMul", ["flat", "w"], ["product"]), node("ReduceMean", ["product"], ["b"], axes=[1], keepdims=1), node("Add", ["product", "b"], ["logits"])],
                                   [init("w", W.T)]), "/add/logits", "Add", "bias", "`b`")
refuse("trans_a", classifier([node("Transpose", ["flat"], ["t"], perm=[1, 0]), node("Gemm", ["t", "w", "b"], ["logits"], transA=1, transB=1)], WB), "/gemm/logits", "transA")
refuse("weight_rank3", classifier([node("MatMul", ["flat", "w"], ["logits"])], [init("w", np.stack([W.T] * 2))], out(dims=(2, "N", C))), "/matmul/logits", "[2, 6, 5]", "matrix")
refuse("features_rank3", classifier([node("Unsqueeze", ["flat", "axes"], ["tokens"]), node("MatMul", ["tokens", "w"], ["logits"])],
                                    [init("w", W.T), init("axes", np.array([1], np.int64))], out(dims=("N", 1, C)),
                                    value_info=[helper.make_tensor_value_info("tokens", FLOAT, ["N", 1, D])]), "/matmul/logits", "`tokens`", "rank 3")
refuse("bias_shape", classifier([node("MatMul", ["flat", "w"], ["product"]), node("Add", ["product", "b"], ["logits"])],
                                [init("w", W.T), init("b", np.zeros((3, C), np.float32))], out(dims=(3, C)), batch=3), "/add/logits", "`b`", "[3, 5]", "5 classes")
refuse("weight_on_the_left", classifier([node("Transpose", ["flat"], ["t"], perm=[1, 0]), node("MatMul", ["w", "t"], ["logits"])], [init("w", W)], out(dims=(C, "N"))), "/matmul/logits", "on the left")
refuse("quantised_weight", classifier([node("DequantizeLinear", ["q", "scale"], ["w"]), GEMM], [init("q", (W * 10).astype(np.int8)), init("scale", np.float32(0.1)), init("b", B)]), "/gemm/logits", "quantised")
refuse("quantised_layer", classifier([
    node("QuantizeLinear", ["flat", "s", "z"], ["q"]), node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"]), node("DequantizeLinear", ["p", "s", "z"], ["logits"])],
    [init("s", np.float32(0.1)), init("z", np.uint8(128)), init("w", np.full((D, C), 130, np.uint8))]), "/dequantizelinear/logits", "quantised")
last_branch = lambda name: helper.make_graph([node("Gemm", ["flat", "w", "b"], [f"logits_{name}"], transB=1)], name, [], [out(f"logits_{name}")])
refuse("if_at_the_end", classifier([node("If", ["flag"], ["logits"], then_branch=last_branch("then"), else_branch=last_branch("else"))], [*WB, init("flag", np.array(True))]), "/if/logits", "If", "control flow")
refuse("two_unnamed_outputs", classifier([node("Gemm", ["flat", "w", "b"], ["a"], transB=1), node("Relu", ["a"], ["c"])], WB, outputs=[out("a"), out("c")]), "2 outputs", "a, c")
refuse("softmax_over_images", classifier([GEMM, node("Softmax", ["logits"], ["answer"], axis=0)], WB, out("answer")), "/softmax/answer", "axis 0")
# Two classifiers of five classes, side by side.
RAW10 = node("Gemm", ["flat", "w", "b"], ["raw"], transB=1)
WB10 = [init("w", np.concatenate([W, W[::-1]])), init("b", np.concatenate([B, B]))]
refuse("joined_softmaxes", classifier([RAW10, node("Reshape", ["raw", "shape"], ["groups"]), node("Softmax", ["groups"], ["logits"], axis=-1)],
                                      [*WB10, numbers("shape", -1, 2, C)], out(dims=("N", 2, C))), "/reshape/groups", "[N,10]", "each image")
refuse("reshape_to_more_rows", classifier([RAW10, node("Reshape", ["raw", "shape"], ["logits"])], [*WB10, numbers("shape", -1, C)], out(dims=("M", C))),
       "/reshape/logits", "[N,10]")
refuse("reshape_to_one_row", classifier([RAW, node("Reshape", ["raw", "shape"], ["logits"])], [*WB, numbers("shape", 1, -1)], out(dims=(1, "M"))),
       "/reshape/logits", "[N,5]")
refuse("reshape_unknown", classifier([
    RAW, node("Shape", ["raw"], ["sizes"]), node("Cast", ["sizes"], ["float"], to=FLOAT), node("Cast", ["float"], ["shape"], to=TensorProto.INT64),
    node("Reshape", ["raw", "shape"], ["logits"])], WB, out(dims=("N", "M"))), "/reshape/logits", "[N,5]")
refuse("flatten_over_images", classifier([RAW, node("Flatten", ["raw"], ["logits"], axis=0)], WB, out(dims=(1, "M"))), "/flatten/logits", "[N,5]")
refuse("squeeze_everything", convolution([node("Squeeze", ["scores"], ["logits"])], output=out(dims=("N", C))), "/squeeze/logits", "[N,5]")
refuse("softmax_over_pixels", convolution([node("Softmax", ["scores"], ["shares"], axis=-1), node("Flatten", ["shares"], ["logits"], axis=1)]),
       "/softmax/shares", "axis -1")
refuse("conv3x3", model([*body(flatten=False)[0], node("Conv", ["relu", "w"], ["scores"], kernel_shape=[3, 3]), node("Flatten", ["scores"], ["logits"], axis=1)],
                        [*body()[1], init("w", rng.normal(0, 1, (C, D, 3, 3)).astype(np.float32))], [out(dims=("N", "CHW"))]), "/conv/scores", "1x1")
refuse("no_layer", model([node("Flatten", ["image"], ["logits"], axis=1)], [], [out(dims=("N", 192))]), "`image`", "not computed by any node")
refuse("integer_weight", classifier([GEMM], [helper.make_tensor("w", TensorProto.INT32, W.shape, [1] * (C * D)), init("b", B)]), "tensor `w`", "element type is number 6")
nan = W.copy()
nan[2, 1] = np.nan
refuse("nan_weight", classifier([GEMM], [init("w", nan), init("b", B)]), "tensor `w`", "value 13 is not finite")
short = init("w", W)
short.raw_data = short.raw_data[:-4]
refuse("short_weight", classifier([GEMM], [short, init("b", B)]), "tensor `w`", "116", "120")
absurd = init("w", W)
del absurd.dims[:]
absurd.dims.extend([1 << 40, 1 << 40])
refuse("absurd_dims", classifier([GEMM], [absurd, init("b", B)]), "tensor `w`", "1099511627776")
# As if columns without rows were to be turned into rows.
empty = init("w", W)
del empty.dims[:]
empty.dims.extend([0, 1 << 60])
empty.raw_data = b""
refuse("empty_weight", classifier([node("Transpose", ["w"], ["wt"], perm=[1, 0]), node("Gemm", ["flat", "wt", "b"], ["logits"])], [empty, init("b", B)]),
       "tensor `w`", "[0, 1152921504606846976]")
negative = init("w", W)
del negative.dims[:]
negative.dims.extend([-5, -6])
refuse("negative_dims", classifier([GEMM], [negative, init("b", B)]), "tensor `w`", "[-5, -6]")
refuse("circle", classifier([node("Identity", ["x"], ["logits"]), node("Identity", ["logits"], ["x"])], []), "not computed by any node")
refuse("weight_circle", classifier([node("Identity", ["w"], ["w2"]), node("Identity", ["w2"], ["w"]), GEMM], [init("b", B)]), "/gemm/logits", "`w`", "not a constant")


def external(location, offset=None, length=None):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=W.shape, data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


(HERE / "weights.bin").write_bytes(b"\0" * 16 + CONV.tobytes() + W.tobytes())
conv_external = external("weights.bin", 16, CONV.nbytes)
conv_external.name = "conv.weight"
del conv_external.dims[:]
conv_external.dims.extend(CONV.shape)


def with_external(weight):
    made = classifier([GEMM], [weight, init("b", B)])
    made.graph.initializer[0].CopyFrom(conv_external)
    return made


AT = 16 + CONV.nbytes
accept("external", with_external(external("weights.bin", AT, W.nbytes)), check=False)
accept("external_to_the_end", with_external(external("./weights.bin", AT)), check=False)
refuse("external_absolute", with_external(external("/etc/hostname")), "tensor `w`", "`/etc/hostname`", "absolute")
refuse("external_parent", with_external(external("../onnx/weights.bin", AT, W.nbytes)), "tensor `w`", "leave the model's folder")
refuse("external_hidden_parent", with_external(external("sub/../../onnx/weights.bin", AT, W.nbytes)), "tensor `w`", "leave the model's folder")
refuse("external_missing", with_external(external("absent.bin", 0, W.nbytes)), "tensor `w`", "`absent.bin`", "cannot be read")
refuse("external_beyond", with_external(external("weights.bin", AT + 4, W.nbytes)), "tensor `w`", "does not fit")
refuse("external_huge", with_external(external("weights.bin", "18446744073709551615", "18446744073709551615")), "tensor `w`", "does not fit")
refuse("external_nonsense", with_external(external("weights.bin", "-1", W.nbytes)), "tensor `w`", "offset -1")
refuse("external_short", with_external(external("weights.bin", AT, W.nbytes - 4)), "tensor `w`", "116", "120")
refuse("external_empty", with_external(external("")), "tensor `w`", "empty")

# --- cut, and not proved: the file lies about shapes that nobody can infer ---------------------------------------------
def hidden(name):
    """A Reshape to so many times N and the sizes `rest`, through floats."""
    return [node("Shape", ["raw"], ["sizes"]), node("Slice", ["sizes", "zero", "one"], ["n"]), node("Mul", ["n", "times"], ["rows"]),
            node("Concat", ["rows", "rest"], ["whole"], axis=0), node("Cast", ["whole"], ["float"], to=FLOAT), node("Ceil", ["float"], ["ceil"]),
            node("Cast", ["ceil"], ["shape"], to=TensorProto.INT64), node("Reshape", ["raw", "shape"], [name])]


SLICE = [numbers("zero", 0), numbers("one", 1)]
unproved = {
    "lying_groups": classifier([RAW10, *hidden("groups"), node("Softmax", ["groups"], ["shares"], axis=-1), node("Reshape", ["shares", "back"], ["logits"])],
                               [*WB10, *SLICE, numbers("times", 1), numbers("rest", 2, C), numbers("back", -1, 2 * C)], out(dims=("N", 2 * C)),
                               value_info=[helper.make_tensor_value_info("groups", FLOAT, ["N", 2 * C])]),
    # Each image's features without the mean of the batch.
    "batch_mean": classifier([node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1), node("Sub", ["flat", "mean"], ["centred"]),
                              node("Gemm", ["centred", "w", "b"], ["logits"], transB=1)], [init("w", W), init("b", B)]),
    "lying_rows": classifier([RAW10, *hidden("logits")], [*WB10, *SLICE, numbers("times", 2), numbers("rest", C)], out(dims=("N", 2 * C))),
}

# --- backbones ------------------------------------------------------------------------------------------------------
def feature_out(name="features", dims=("N", D)):
    return helper.make_tensor_value_info(name, FLOAT, list(dims))


nodes, constants = body(flat="features")
backbones = {
    "backbone": model(nodes, constants, [feature_out()]),
    "backbone_fixed_batch": model(nodes, constants, [feature_out(dims=(4, D))], batch=4),
    "backbone_4d": model(nodes[:3], constants, [feature_out("pooled", ("N", D, 1, 1))]),
    "backbone_two_outputs": model(nodes, constants, [feature_out("pooled", ("N", D, 1, 1)), feature_out()]),
    "backbone_external": model(nodes, [conv_external, constants[1]], [feature_out()]),
    # The log of an image's averages is NaN where one is negative: features that are not finite.
    "backbone_log": model([node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0), node("Log", ["mean"], ["features"])], [],
                          [feature_out(dims=("N", 3))]),
}
# Through floats no shape inference sees: neither H, W nor D is known before a run.
free = model([*body()[0], node("Shape", ["flat"], ["shape"]), node("Cast", ["shape"], ["float"], to=FLOAT), node("Ceil", ["float"], ["ceil"]),
              node("Cast", ["ceil"], ["whole"], to=TensorProto.INT64), node("Reshape", ["flat", "whole"], ["features"])], constants, [feature_out(dims=("N", "D"))])
# The same with H and W fixed: D is found by a run at load.
backbones["backbone_symbolic"] = onnx.ModelProto()
backbones["backbone_symbolic"].CopyFrom(free)
for i, name in [(2, "H"), (3, "W")]:
    free.graph.input[0].type.tensor_type.shape.dim[i].dim_param = name
backbones["backbone_free"] = free
backbones["backbone_no_choice"] = model(nodes, constants, [feature_out("relu", ("N", D, 4, 4)), feature_out("pooled", ("N", D, 1, 1))])
backbones["backbone_map"] = model(nodes[:2], constants, [feature_out("relu", ("N", D, 4, 4))])
two_inputs = model([*nodes[:3], node("Add", ["pooled", "extra"], ["sum"]), node("Flatten", ["sum"], ["features"], axis=1)], constants, [feature_out()],
                   inputs=[helper.make_tensor_value_info("extra", FLOAT, ["N", D, 1, 1])])
backbones["backbone_two_inputs"] = two_inputs
sequence = model([*nodes, node("SequenceConstruct", ["features"], ["seq"])], constants, [helper.make_tensor_sequence_value_info("seq", FLOAT, None)])
backbones["backbone_sequence"] = sequence
double_input = model(nodes, constants, [feature_out()])
double_input.graph.input[0].type.tensor_type.elem_type = DOUBLE
double_input.graph.node.insert(0, node("Cast", ["image"], ["image32"], to=FLOAT))
double_input.graph.node[1].input[0] = "image32"
backbones["backbone_double"] = double_input
backbones["backbone_negative"] = model(nodes, constants, [feature_out(dims=("N", -7))])
# ONNX Runtime 1.31 crashes on this one.
without_output = helper.make_function("own", "Twice", ["x", "y"], [], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)])
backbones["backbone_bad_call"] = model([*nodes[:3], node("Flatten", ["pooled"], ["flat"], axis=1), helper.make_node("Twice", ["flat"], ["features"], domain="own")],
                                       constants, [feature_out()], functions=[without_output], imports=[helper.make_opsetid("own", 1)])
vast = model(nodes, constants, [feature_out()])
for i in (2, 3):
    vast.graph.input[0].type.tensor_type.shape.dim[i].dim_value = 1_000_000
backbones["backbone_vast"] = vast
backbones["backbone_vast_batch"] = model(nodes, constants, [feature_out(dims=(2_000_000_000, D))], batch=2_000_000_000)
gray = model(nodes, constants, [feature_out()])
gray.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
backbones["backbone_gray"] = gray
# As many features as a ResNet-50 has, without its weights: the pixels over and over.
backbones["backbone_wide"] = model(
    [node("Flatten", ["image"], ["flat"], axis=1), node("Tile", ["flat", "repeats"], ["tiled"]),
     node("Slice", ["tiled", "starts", "ends", "axes"], ["features"])],
    [init("repeats", np.array([1, 11])), init("starts", np.array([0])), init("ends", np.array([2048])), init("axes", np.array([1]))],
    [feature_out(dims=("N", 2048))])


# --- a model that uses every field of the schema, so that a lost one shows -------------------------------------------
def fill(message, depth=0):
    """Sets every field of a message, to a depth that reaches all message types."""
    for field in message.DESCRIPTOR.fields:
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if field.containing_oneof and message.WhichOneof(field.containing_oneof.name):
            continue
        if field.message_type:
            limit = 7 if field.message_type.name in ("GraphProto", "NodeProto", "AttributeProto") else 9
            if limit <= depth or (depth > 2 and field.name in ("graphs", "g", "tensors", "sparse_tensors", "type_protos")):
                continue
            fill(getattr(message, field.name).add() if repeated else getattr(message, field.name), depth + 1)
            if not repeated:
                getattr(message, field.name).SetInParent()
            continue
        value = {"string": "text", "bytes": b"\x00\xff", "float": 0.5, "double": 0.25, "bool": True}.get(
            {9: "string", 12: "bytes", 2: "float", 1: "double", 8: "bool"}.get(field.type), None)
        if value is None:
            value = field.enum_type.values[-1].number if field.enum_type else (3 if field.type in (4, 13) else -7)
        if repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)


every_field = onnx.ModelProto()
fill(every_field)
oneofs = every_field.graph.value_info
for kind in ["tensor_type", "sequence_type", "map_type", "optional_type", "sparse_tensor_type", "opaque_type"]:
    info = oneofs.add(name=kind)
    fill(getattr(info.type, kind), 3)
    getattr(info.type, kind).SetInParent()
(HERE / "every_field.onnx").write_bytes(every_field.SerializeToString(deterministic=True))

golden = {"accepted": [], "refused": []}
for name, (made, logits, note, tolerance, bias, check) in accepted.items():
    if check:
        onnx.checker.check_model(made)
    (HERE / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
    loaded = onnx.load(HERE / f"{name}.onnx")
    if logits not in [output.name for output in loaded.graph.output]:
        loaded.graph.output.append(onnx.ValueInfoProto(name=logits))
    names = [output.name for output in loaded.graph.output]
    n = 1 if name == "fixed_batch" else 3
    feed = {loaded.graph.input[0].name: pixels(n)}
    answer = ReferenceEvaluator(loaded).run(None, feed)[names.index(logits)].reshape(n, C)
    golden["accepted"].append({"file": f"{name}.onnx", "note": note, "tolerance": tolerance, "bias": bias, "n": n,
                               "logits": [round(float(x), 7) for x in answer.flatten()]})
for name, (made, parts) in refused.items():
    (HERE / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
    golden["refused"].append({"file": f"{name}.onnx", "message_holds": list(parts)})
for name, made in [*unproved.items(), *backbones.items()]:
    (HERE / f"{name}.onnx").write_bytes(made.SerializeToString(deterministic=True))
expected = ReferenceEvaluator(onnx.load(HERE / "backbone.onnx")).run(["features"], {"image": pixels(3)})[0]
golden["features"] = [round(float(x), 7) for x in expected.flatten()]
lines = [f'"{key}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]" for key, rows in golden.items()]
(HERE / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
total = sum(path.stat().st_size for path in HERE.iterdir())
print(f"{len(accepted)} accepted, {len(refused)} refused, {len(backbones)} backbones, {total} bytes")
