"""What the patch set nuksm adds to /sys/kernel/mm/ksm, as it boots on four nodes."""

NUKSM_FILES = {
    "numa_policy": "[none] fair priority strict",
    "numa_nodes": "0-3",
    "numa_max_copies": "1",
    "numa_copies_percent": "10",
    "numa_hysteresis": "50",
    "numa_migrate_rate": "4096",
    "numa_sample_millisecs": "1000",
    "numa_force_node": "-1",
    "scan_threads": "1",
}
