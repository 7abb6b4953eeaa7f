"""Embed Parquet files with Ray Data: `python bulk_ray.py INPUT OUTPUT --bundle BUNDLE --actors 2 --cores 8`.

Each actor is a process with an open bundle, and Ray starts another where one dies. Ray writes the rows in any order, so
the input needs a column that names each row. On a cluster, run `ray job submit`; the bundle must lie at the same path
on every node, and ortkit must be installed there.
"""

from __future__ import annotations

import argparse

import ray

from ortkit.bulk import Embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", help="Parquet file or folder")
    parser.add_argument("output", help="folder for Parquet files")
    parser.add_argument("--bundle", required=True, help="path of the bundle, the same on every node")
    parser.add_argument("--column", default="text")
    parser.add_argument("--actors", type=int, default=2, help="processes of all nodes together")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores of each process")
    parser.add_argument("--rows", type=int, default=4096, help="rows of a batch")
    parser.add_argument("--local", action="store_true", help="start Ray on this machine alone, without its dashboard")
    options = parser.parse_args()

    if options.local:
        # One more for the tasks that read and write.
        cores = options.actors * options.cores + 1
        ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=1 << 28, _node_ip_address="127.0.0.1")
    else:
        ray.init()
    embedded = ray.data.read_parquet(options.input).map_batches(
        Embed,
        # An actor sees all cores of its machine: `workers` says how many are its own.
        fn_constructor_kwargs={"bundle": options.bundle, "column": options.column, "workers": options.cores},
        num_cpus=options.cores,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        batch_format="pyarrow",
        batch_size=options.rows,
        udf_modifying_row_count=False,
    )
    embedded.write_parquet(options.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
