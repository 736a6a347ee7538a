"""What the same sum costs under CKKS, for `bench.blind`: `PYTHON_WITH_TENSEAL bench/ckks.py MEMBERS COORDINATES`.

Prints a line of JSON. Everybody has one secret key, as in the frameworks that offer this, so that the encryption
hides updates from a server only, and from no member that has the others' ciphertexts.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

# 128 bits of security at this degree allow 218 bits of modulus; no multiplication, so two primes and the special one.
DEGREE, MODULI, SCALE = 8192, [60, 40, 60], 2.0**40


def main(tenseal: Any, members: int, coordinates: int) -> None:
    """Encrypt, add up, decrypt, and weigh the ciphertexts."""
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=DEGREE, coeff_mod_bit_sizes=MODULI)
    context.global_scale = SCALE
    slots = DEGREE // 2
    values = np.random.default_rng(0).standard_normal(coordinates) * 0.01
    parts = [values[start : start + slots].tolist() for start in range(0, coordinates, slots)]
    times = dict.fromkeys(("encrypt_s", "add_s", "decrypt_s"), 0.0)
    size, worst = 0, 0.0
    for part in parts:
        start = time.process_time()
        sealed = tenseal.ckks_vector(context, part)
        data = sealed.serialize()
        times["encrypt_s"] += time.process_time() - start
        size += len(data)
        start = time.process_time()
        total = tenseal.ckks_vector_from(context, data)
        for _ in range(members - 1):
            total += tenseal.ckks_vector_from(context, data)
        times["add_s"] += time.process_time() - start
        start = time.process_time()
        found = total.decrypt()
        times["decrypt_s"] += time.process_time() - start
        worst = max(worst, float(np.abs(np.array(found) / members - np.array(part)).max()))
    print(
        json.dumps({**times, "bytes": size, "coordinates": coordinates, "error": worst, "version": tenseal.__version__})
    )


if __name__ == "__main__":
    import tenseal

    main(tenseal, int(sys.argv[1]), int(sys.argv[2]))
