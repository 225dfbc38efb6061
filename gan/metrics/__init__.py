"""Metrics of generated against real images: features (n, d) → statistics → value, each in its own file.

| file | value |
|---|---|
| `frechet` | Fréchet distance of two Gaussians fitted to the features (FID's formula) |
| `kernel` | kernel distance (KID's formula): unbiased squared maximum mean discrepancy |
| `manifold` | precision, recall, density, coverage by nearest neighbours |
| `confidence` | inception-like score from a classifier's probabilities |
| `agreement` | share of samples that a classifier gives the label they were asked for |
| `diversity` | how varied each class is, generated over real |
| `memorisation` | samples nearer to a training image than unseen real images are |

All are pure functions of tensors, computed in chunks of bounded memory; no value depends on the chunk or batch size
beyond rounding. Only figures made with the Inception network may be called FID, KID or IS.
"""
