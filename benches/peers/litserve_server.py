"""LitServe: as many workers as cores, batches, and the queue that its documentation has for hundreds of requests a second."""

import sys
from typing import Annotated

import litserve
import numpy as np
from classifier import N_WORKERS, Classifier
from fastapi import Body


class ClassifierAPI(litserve.LitAPI):
    def setup(self, device):
        self.classifier = Classifier()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> np.ndarray:
        return self.classifier.decode(request)

    def predict(self, pixels: np.ndarray) -> list[dict]:
        return self.classifier.predict(pixels)


if __name__ == "__main__":
    api = ClassifierAPI(max_batch_size=8, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=N_WORKERS, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
