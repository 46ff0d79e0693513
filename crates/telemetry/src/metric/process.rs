//! The process itself: memory, CPU time, files and threads.

use mlx_manager_signal::metric::{
    Labels, advance_fraction,
    name::{Gauge, Sum},
    set,
};

/// Reads the process' figures; what the system does not tell is left out.
pub(super) fn poll() {
    let process = metrics_process::collector::collect();
    if let Some(seconds) = process.cpu_seconds_total {
        advance_fraction(Sum::ProcessCpuSeconds, Labels::none(), seconds);
    }
    let gauges = [
        (Gauge::ProcessOpenFds, process.open_fds),
        (Gauge::ProcessMaxFds, process.max_fds),
        (Gauge::ProcessVirtualMemoryBytes, process.virtual_memory_bytes),
        (Gauge::ProcessResidentMemoryBytes, process.resident_memory_bytes),
        (Gauge::ProcessStartTimeSeconds, process.start_time_seconds),
        (Gauge::ProcessThreads, process.threads),
    ];
    for (gauge, value) in gauges {
        if let Some(value) = value {
            set(gauge, Labels::none(), value as f64);
        }
    }
}
