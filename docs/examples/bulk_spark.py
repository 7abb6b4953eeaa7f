"""Embed Parquet files with Spark: `spark-submit bulk_spark.py INPUT OUTPUT --bundle BUNDLE --cores 1`.

`mapInArrow` hands record batches to Python workers, which stay alive (`spark.python.worker.reuse`) and open the bundle
once. The bundle must lie at the same path on the driver and every executor, and ortkit must be installed there. Set
`spark.task.cpus` to the cores of a worker.
"""

from __future__ import annotations

import argparse

from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from ortkit.bulk import Embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="Parquet file or folder")
    parser.add_argument("output", help="folder for Parquet files")
    parser.add_argument("--bundle", required=True, help="path of the bundle, the same on every machine")
    parser.add_argument("--column", default="text")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores of a task, as `spark.task.cpus`")
    options = parser.parse_args()

    spark = SparkSession.builder.getOrCreate()
    texts = spark.read.parquet(options.input)
    # Spark has no lists of a fixed size.
    embed = Embed(options.bundle, column=options.column, workers=options.cores, fixed_size=False)
    schema = from_arrow_schema(embed.schema(to_arrow_schema(texts.schema)))
    texts.mapInArrow(embed.batches, schema).write.parquet(options.output)
    spark.stop()


if __name__ == "__main__":
    main()
