"""Write scikit-learn's handwritten digits as the embedded asset: `python -m epd.experiments.export_digits`.

The data set is "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, CC BY 4.0), its test part as scikit-learn ships it. Needs scikit-learn (extra `dev`).
"""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from ..denoisers.digits import DATA_FILE


def main() -> None:
    """1,797 images of 8 x 8 pixels with integer values 0..16, and their labels, as uint8 safetensors."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.ascontiguousarray(pixels.reshape(-1, 8, 8).astype(np.uint8))
    about = {
        "source": "UCI Optical Recognition of Handwritten Digits, doi 10.24432/C50P49 (scikit-learn load_digits)",
        "license": "CC BY 4.0",
    }
    save_file({"images": images, "labels": labels.astype(np.uint8)}, str(DATA_FILE), metadata=about)
    print(f"{DATA_FILE}: {len(images)} images, {DATA_FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
