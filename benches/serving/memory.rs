//! Memory and time of processes, from `/proc`.

use std::collections::HashMap;

/// Resident memory of a process group, as if it were alone on the machine: anonymous pages by their proportional share, so
/// that what its processes share counts once, and of each mapped file what the process with most of it has.
///
/// Why not the sum of PSS? Of the pages of a library that other servers have mapped too it counts a part alone.
pub(crate) fn resident_bytes(group: u32) -> u64 {
    let (mut anonymous, mut files) = (0, HashMap::<String, u64>::new());
    for pid in processes_of(group) {
        // A process may end between two looks.
        let (Ok(rollup), Ok(mappings)) = (
            std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")),
            std::fs::read_to_string(format!("/proc/{pid}/smaps")),
        ) else {
            continue;
        };
        anonymous += rollup.lines().find_map(|line| bytes_of(line, "Pss_Anon:")).unwrap_or(0);
        for (file, bytes) in file_pages(&mappings) {
            let most = files.entry(file).or_default();
            *most = bytes.max(*most);
        }
    }
    anonymous + files.values().sum::<u64>()
}

/// Time that a process group has spent on the cores, in seconds.
pub(crate) fn core_seconds(group: u32) -> f64 {
    processes_of(group).into_iter().map(core_seconds_of).sum()
}

/// The same of this process.
pub(crate) fn own_core_seconds() -> f64 {
    core_seconds_of(std::process::id())
}

fn core_seconds_of(pid: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    // User and system time.
    stat(pid).iter().skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS_PER_SECOND
}

fn processes_of(group: u32) -> Vec<u32> {
    let is_of_it = |pid: &u32| stat(*pid).get(2).is_some_and(|field| *field == group.to_string());
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).filter(is_of_it).collect()
}

/// The fields of `/proc/PID/stat` after the name in parentheses: state, parent, group and so on. None if it has ended.
fn stat(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may have spaces and parentheses of its own.
    let fields = stat.rfind(')').map_or("", |end| &stat[end + 1..]);
    fields.split_whitespace().map(str::to_owned).collect()
}

/// Device and inode of each file that is mapped, and how much of it is resident, without the pages that were written to. What is
/// mapped twice from the same offset on counts once.
fn file_pages(mappings: &str) -> HashMap<String, u64> {
    let (mut parts, mut part, mut resident) = (HashMap::<(String, String), u64>::new(), None, 0);
    for line in mappings.lines() {
        let fields: Vec<&str> = line.split_whitespace().take(5).collect();
        // Every mapping begins with a line like `7f00-7f01 r-xp 00000000 fe:00 1234 /lib/x.so`.
        if let [_, _, offset, device, inode] = fields[..]
            && device.contains(':')
        {
            part = (inode != "0").then(|| (format!("{device} {inode}"), offset.to_owned()));
        }
        let Some(part) = &part else { continue };
        if let Some(bytes) = bytes_of(line, "Rss:") {
            resident = bytes;
        } else if let Some(bytes) = bytes_of(line, "Anonymous:") {
            let most = parts.entry(part.clone()).or_default();
            *most = (resident - bytes).max(*most);
        }
    }
    let mut files = HashMap::new();
    for ((file, _), bytes) in parts {
        *files.entry(file).or_default() += bytes;
    }
    files
}

/// The value of a line like `Rss:  12 kB`.
fn bytes_of(line: &str, name: &str) -> Option<u64> {
    let kilobytes = line.strip_prefix(name)?.trim().strip_suffix("kB")?;
    kilobytes.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
