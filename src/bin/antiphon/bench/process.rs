//! What a process has used, from /proc.

use std::fs;
use std::io;
use std::time::Duration;

/// A look at a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Time of its threads on a processor, in its own code and the kernel's.
    pub(super) cpu: Duration,
    /// Memory that it holds.
    pub(super) rss_bytes: u64,
    /// The most memory that it has ever held.
    pub(super) rss_peak_bytes: u64,
}

impl Usage {
    /// Of the process `pid`, or of this one.
    pub(super) fn of(pid: Option<u32>) -> io::Result<Self> {
        let folder = pid.map_or_else(|| "/proc/self".to_owned(), |pid| format!("/proc/{pid}"));
        let stat = fs::read_to_string(format!("{folder}/stat"))?;
        let status = fs::read_to_string(format!("{folder}/status"))?;
        let ticks = cpu_ticks(&stat).ok_or_else(|| unreadable(&folder, "stat"))?;
        let memory = |name| kibibytes(&status, name).ok_or_else(|| unreadable(&folder, "status"));
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64),
            rss_bytes: memory("VmRSS:")? * 1024,
            rss_peak_bytes: memory("VmHWM:")? * 1024,
        })
    }
}

fn unreadable(folder: &str, file: &str) -> io::Error {
    io::Error::other(format!("{folder}/{file} is not as expected"))
}

/// Fields 14 and 15. The name, field 2, may hold anything, blanks and
/// parentheses too, so counting begins behind its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let mut number = || fields.next()?.parse::<u64>().ok();
    Some(number()? + number()?)
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_an_odd_name() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 100 0 0 0 700 35 0 0 20 0 3 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(735));
        assert_eq!(cpu_ticks("42 (a"), None);
    }

    #[test]
    fn memory_is_found_by_name() {
        let status = "Name:\tx\nVmHWM:\t   20480 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!((kibibytes(status, "VmHWM:"), kibibytes(status, "VmRSS:")), (Some(20_480), Some(1_024)));
        assert_eq!(kibibytes(status, "VmSwap:"), None);
    }
}
