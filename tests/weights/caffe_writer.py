"""Caffe's files, written by Google's Protocol Buffers from Caffe's message definitions.

The messages are built here from the numbers, names and types of BVLC's src/caffe/proto/caffe.proto
(the part that these networks need), and serialised by google.protobuf. So what the tests read was
written by nothing that this package has.
"""

from __future__ import annotations

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
}

_OLD_TYPES = (
    *(("Accuracy", "ACCURACY", 1), ("Convolution", "CONVOLUTION", 4), ("Data", "DATA", 5), ("Dropout", "DROPOUT", 6)),
    *(("InnerProduct", "INNER_PRODUCT", 14), ("LRN", "LRN", 15), ("Pooling", "POOLING", 17), ("ReLU", "RELU", 18)),
    *(("Softmax", "SOFTMAX", 20), ("SoftmaxWithLoss", "SOFTMAX_LOSS", 21), ("Split", "SPLIT", 22)),
)
_ENUMS = {
    "Phase": {"TRAIN": 0, "TEST": 1},
    "PoolMethod": {"MAX": 0, "AVE": 1, "STOCHASTIC": 2},
    "NormRegion": {"ACROSS_CHANNELS": 0, "WITHIN_CHANNEL": 1},
    "LayerType": {"NONE": 0} | {old: number for _, old, number in _OLD_TYPES},
}
# Messages: "label type name = number".
_MESSAGES = {
    "BlobShape": ["packed int64 dim = 1"],
    "BlobProto": [
        *("optional BlobShape shape = 7", "packed float data = 5", "packed float diff = 6"),
        *("packed double double_data = 8", "packed double double_diff = 9"),
        *("optional int32 num = 1", "optional int32 channels = 2", "optional int32 height = 3"),
        "optional int32 width = 4",
    ],
    "NetStateRule": ["optional Phase phase = 1"],
    "FillerParameter": ["optional string type = 1", "optional float value = 2", "optional float std = 6"],
    "ParamSpec": ["optional string name = 1", "optional float lr_mult = 3", "optional float decay_mult = 4"],
    "TransformationParameter": [
        *("optional float scale = 1", "optional bool mirror = 2", "optional uint32 crop_size = 3"),
        *("optional string mean_file = 4", "repeated float mean_value = 5"),
    ],
    "ConvolutionParameter": [
        *("optional uint32 num_output = 1", "optional bool bias_term = 2", "repeated uint32 pad = 3"),
        *("repeated uint32 kernel_size = 4", "optional uint32 group = 5", "repeated uint32 stride = 6"),
        *("optional FillerParameter weight_filler = 7", "optional FillerParameter bias_filler = 8"),
        *("optional uint32 pad_h = 9", "optional uint32 pad_w = 10", "optional uint32 kernel_h = 11"),
        *("optional uint32 kernel_w = 12", "optional uint32 stride_h = 13", "optional uint32 stride_w = 14"),
        *("optional int32 axis = 16", "repeated uint32 dilation = 18"),
    ],
    "InnerProductParameter": [
        *("optional uint32 num_output = 1", "optional bool bias_term = 2"),
        *("optional FillerParameter weight_filler = 3", "optional FillerParameter bias_filler = 4"),
        *("optional int32 axis = 5", "optional bool transpose = 6"),
    ],
    "LRNParameter": [
        *("optional uint32 local_size = 1", "optional float alpha = 2", "optional float beta = 3"),
        *("optional NormRegion norm_region = 4", "optional float k = 5"),
    ],
    "PoolingParameter": [
        *("optional PoolMethod pool = 1", "optional uint32 kernel_size = 2", "optional uint32 stride = 3"),
        *("optional uint32 pad = 4", "optional uint32 kernel_h = 5", "optional uint32 kernel_w = 6"),
        *("optional uint32 stride_h = 7", "optional uint32 stride_w = 8", "optional uint32 pad_h = 9"),
        *("optional uint32 pad_w = 10", "optional bool global_pooling = 12"),
    ],
    "ReLUParameter": ["optional float negative_slope = 1"],
    "DropoutParameter": ["optional float dropout_ratio = 1"],
    "InputParameter": ["repeated BlobShape shape = 1"],
    "DataParameter": ["optional string source = 1", "optional float scale = 2", "optional uint32 batch_size = 4"],
    "LayerParameter": [
        *("optional string name = 1", "optional string type = 2", "repeated string bottom = 3"),
        *("repeated string top = 4", "optional Phase phase = 10", "repeated float loss_weight = 5"),
        *("repeated ParamSpec param = 6", "repeated BlobProto blobs = 7", "repeated NetStateRule include = 8"),
        *("repeated NetStateRule exclude = 9", "repeated bool propagate_down = 11"),
        *("optional TransformationParameter transform_param = 100", "optional DataParameter data_param = 107"),
        *("optional ConvolutionParameter convolution_param = 106", "optional DropoutParameter dropout_param = 108"),
        *("optional InnerProductParameter inner_product_param = 117", "optional InputParameter input_param = 143"),
        *("optional LRNParameter lrn_param = 118", "optional PoolingParameter pooling_param = 121"),
        "optional ReLUParameter relu_param = 123",
    ],
    "V0LayerParameter": ["optional string name = 1", "optional string type = 2", "repeated BlobProto blobs = 50"],
    "V1LayerParameter": [
        *("repeated string bottom = 2", "repeated string top = 3", "optional string name = 4"),
        *("optional LayerType type = 5", "repeated BlobProto blobs = 6", "repeated float blobs_lr = 7"),
        *(
            "repeated float weight_decay = 8",
            "repeated NetStateRule include = 32",
            "repeated NetStateRule exclude = 33",
        ),
        *("optional ConvolutionParameter convolution_param = 10", "optional DataParameter data_param = 11"),
        *("optional DropoutParameter dropout_param = 12", "optional InnerProductParameter inner_product_param = 17"),
        *("optional LRNParameter lrn_param = 18", "optional PoolingParameter pooling_param = 19"),
        *("optional ReLUParameter relu_param = 30", "optional TransformationParameter transform_param = 36"),
        "optional V0LayerParameter layer = 1",
    ],
    "NetParameter": [
        *("optional string name = 1", "repeated string input = 3", "repeated BlobShape input_shape = 8"),
        *("repeated int32 input_dim = 4", "optional bool force_backward = 5", "optional bool debug_info = 7"),
        *("repeated LayerParameter layer = 100", "repeated V1LayerParameter layers = 2"),
    ],
}


def _pool(packed: bool) -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for name, values in _ENUMS.items():
        # An enumeration's names share a scope with their enumeration's: each gets a message around it.
        scope = file.message_type.add(name=f"{name}Of")
        enum = scope.enum_type.add(name=name)
        for word, number in values.items():
            enum.value.add(name=word, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for line in fields:
            label, kind, field_name, _, number = line.split()
            field = message.field.add(name=field_name, number=int(number))
            field.label = _Field.LABEL_OPTIONAL if label == "optional" else _Field.LABEL_REPEATED
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
                field.type_name = f".caffe.{kind}Of.{kind}" if kind in _ENUMS else f".caffe.{kind}"
            if label == "packed":
                field.options.packed = packed
    found = descriptor_pool.DescriptorPool()
    found.Add(file)
    return found


_POOL = _pool(packed=True)


def message(kind: str, /, **fields):
    """A message of Caffe's."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"caffe.{kind}"))(**fields)


def unpacked(made) -> bytes:
    """A message as it is written where the definition does not pack its values: each behind a tag of its own."""
    kind = _pool(packed=False).FindMessageTypeByName(made.DESCRIPTOR.full_name)
    return message_factory.GetMessageClass(kind).FromString(made.SerializeToString()).SerializeToString()


OLD_TYPES = {new: number for new, _, number in _OLD_TYPES}
# As in the deploy.prototxt of both networks.
CONVOLUTIONS = (
    {"kernel_size": [11], "stride": [4]},
    {"kernel_size": [5], "pad": [2], "group": 2},
    {"kernel_size": [3], "pad": [1]},
    {"kernel_size": [3], "pad": [1], "group": 2},
    {"kernel_size": [3], "pad": [1], "group": 2},
)


def network(spec, num_classes, *, old=False, train=False):
    """The NetParameter of `bvlc_alexnet` or `caffenet` with a spec's widths, without blobs.

    `train` has the layers of a network in training, as a .caffemodel that Caffe saved has them.
    """
    net = message("NetParameter", name="AlexNet")
    fields = net.layers if old else net.layer

    def add(name, kind, bottom, top, **parameters):
        return fields.add(name=name, type=OLD_TYPES[kind] if old else kind, bottom=bottom, top=top, **parameters)

    last = "data"
    if train:
        transform = {"mirror": True, "crop_size": spec.input.size, "mean_file": "imagenet_mean.binaryproto"}
        add("data", "Data", [], ["data", "label"], transform_param=transform)
    else:
        net.input.append("data")
        net.input_shape.add(dim=[1, 3, spec.input.size, spec.input.size])
    lrn = {"lrn_param": {"local_size": 5, "alpha": 1e-4, "beta": 0.75}}
    pool = {"pooling_param": {"pool": 0, "kernel_size": 3, "stride": 2}}
    both = [("Pooling", "pool", pool), ("LRN", "norm", lrn)] if spec.name == "caffenet" else []
    both = both or [("LRN", "norm", lrn), ("Pooling", "pool", pool)]
    following = {1: both, 2: both, 5: [("Pooling", "pool", pool)]}
    for number, (conv, settings) in enumerate(zip(spec.convs, CONVOLUTIONS, strict=True), 1):
        settings = {"num_output": conv.features, **settings}
        add(f"conv{number}", "Convolution", [last], [f"conv{number}"], convolution_param=settings)
        last = f"conv{number}"
        add(f"relu{number}", "ReLU", [last], [last])
        for kind, block, parameters in following.get(number, ()):
            add(f"{block}{number}", kind, [last], [f"{block}{number}"], **parameters)
            last = f"{block}{number}"
    for number, width in ((6, spec.dense[0].features), (7, spec.dense[1].features), (8, num_classes)):
        add(f"fc{number}", "InnerProduct", [last], [f"fc{number}"], inner_product_param={"num_output": width})
        last = f"fc{number}"
        if number < 8:
            add(f"relu{number}", "ReLU", [last], [last])
            add(f"drop{number}", "Dropout", [last], [last], dropout_param={"dropout_ratio": 0.5})
    if train:
        add("fc8_fc8_0_split", "Split", ["fc8"], ["fc8_fc8_0_split_0", "fc8_fc8_0_split_1"])
        add("accuracy", "Accuracy", ["fc8_fc8_0_split_0", "label"], ["accuracy"])
        add("loss", "SoftmaxWithLoss", ["fc8_fc8_0_split_1", "label"], ["loss"])
    return net


def fill(net, arrays, *, old=False):
    """Puts blobs into a network: `arrays` by the layers' names, weights and biases in Caffe's layout."""
    for layer in net.layers or net.layer:
        for value in arrays.get(layer.name, ()):
            layer.blobs.append(blob(value, old=old))
    return net


def blob(value, *, old=False):
    """A blob: with its shape, or with the four numbers of before; float64 as doubles."""
    made = message("BlobProto")
    if old:
        sides = [1] * (4 - value.ndim) + list(value.shape)
        made.num, made.channels, made.height, made.width = sides
    else:
        made.shape.dim.extend(value.shape)
    values = made.double_data if value.dtype == np.float64 else made.data
    values.extend(value.ravel().tolist())
    return made


def prototxt(net):
    """The text form, as Google's library prints it."""
    return text_format.MessageToString(net)


def varint(value):
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number, content, length=None):
    """A field of bytes: its tag, its length (or another), the bytes."""
    return varint(number << 3 | 2) + varint(len(content) if length is None else length) + content
