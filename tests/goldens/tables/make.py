"""Makes the Parquet files beside it, as pyarrow writes them: `pip install pyarrow` (26 when they were made)."""

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 7

# Paths and texts, compressed by snappy, in groups of three rows.
paths = pa.table({
    "key": [f"{row:09}" for row in range(ROWS)],
    "width": list(range(ROWS)),
    "filepath": [f"{row}.jpg" for row in range(ROWS)],
    "title": [None if row == 4 else f"text {row}, \"é\"" for row in range(ROWS)],
})
pq.write_table(paths, "paths.parquet", row_group_size=3)

# Images themselves, as img2dataset writes them with `--output_format parquet`: what failed has none. Pages of few rows, by zstd.
images = pa.table({
    "caption": [f"text {row}" for row in range(ROWS)],
    "status": ["failed_to_download" if row == 2 else "success" for row in range(ROWS)],
    "jpg": pa.array([None if row == 2 else bytes([255, 216, row]) * 40 for row in range(ROWS)], pa.binary()),
})
pq.write_table(images, "images.parquet", row_group_size=4, compression="zstd", data_page_size=64, use_dictionary=False,
               write_batch_size=1)
# The same with a dictionary, by gzip.
pq.write_table(images, "dictionary.parquet", row_group_size=4, compression="gzip", data_page_size=64, write_batch_size=1)
