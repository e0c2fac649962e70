"""mosec: its front in Rust, as many worker processes as cores, batches."""

import numpy as np
from classifier import N_WORKERS, Classifier
from mosec import Server, Worker


class Inference(Worker):
    def __init__(self):
        super().__init__()
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> np.ndarray:
        return self.classifier.decode(data)

    def forward(self, data: list[np.ndarray]) -> list[dict]:
        return self.classifier.predict(np.stack(data))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=N_WORKERS, max_batch_size=8, max_wait_time=2)
    server.run()
