//! What processes here do, for a master that can show it where their ghosts are: state, CPU time, memory, told when they
//! have changed.
//!
//! Ten thousand that sleep cost nothing: those that did something last time are looked at each time, the others only if the
//! machine has spent time on something else than these. Files are read on a thread of their own, not in the agent's.

use super::{Actor, Fact};
use bproc_common::id::Pid;
use bproc_proto::link::{Doing, Numbers, from_node};
use bproc_sys::process::Stat;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

/// Between looks. The master's readers are to see nothing older than 5 s.
const PAUSE: Duration = Duration::from_secs(3);
/// Looks take one part in so many of a processor's time.
const SHARE: u32 = 50;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Time that the machine may have spent elsewhere, clock ticks: the agent's accounts and the kernel's differ a little.
const LITTLE: u64 = 2;
/// The kernel samples where time goes, and may miss who runs for short: all are looked at so often.
const ALL_AFTER: u32 = 10;

/// What is known of the processes.
#[derive(Debug)]
pub struct Watch {
    /// The master can show it.
    wanted: bool,
    /// `None` while a look is under way.
    known: Option<Known>,
    due: tokio::time::Instant,
    /// Links so far.
    link: u32,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { wanted: false, known: Some(Known::default()), due: tokio::time::Instant::now(), link: 0 }
    }
}

impl Watch {
    /// A link stands: its master knows nothing yet.
    pub fn linked(&mut self, wanted: bool) {
        *self = Watch { wanted, link: self.link.wrapping_add(1), ..Watch::default() };
    }

    /// When to look, if at all.
    pub fn due(&self) -> Option<tokio::time::Instant> {
        (self.wanted && self.known.is_some()).then_some(self.due)
    }
}

/// What a look found, and what it knows for the next.
#[derive(Debug)]
pub struct Seen {
    link: u32,
    known: Known,
    changed: Vec<Numbers>,
    took: Duration,
}

/// A process as it was told.
#[derive(Debug)]
struct Told {
    /// With its number names it for good.
    starttime: u64,
    numbers: Numbers,
    /// It did something since the look before, or was about to.
    lively: bool,
}

#[derive(Debug, Default)]
struct Known {
    processes: HashMap<i32, Told>,
    elsewhere: Elsewhere,
}

/// Whether the machine spent time on others than those that are looked at.
#[derive(Debug, Default)]
struct Elsewhere {
    /// The machine's without this agent's, at the last look at all.
    began: u64,
    /// Of those that were looked at, since.
    seen: u64,
    /// Looks since.
    looks: u32,
}

impl Elsewhere {
    /// `now` is what the machine has spent, without this agent. A look at all is due; it counts from here.
    fn any(&mut self, now: u64) -> bool {
        self.looks += 1;
        let spent = now.saturating_sub(self.began).saturating_sub(self.seen);
        let any = spent > LITTLE || self.looks >= ALL_AFTER;
        if any {
            *self = Elsewhere { began: now, ..Elsewhere::default() };
        }
        any
    }
}

impl Known {
    /// Looks at these (number in the space, number here).
    fn look(
        &mut self,
        all: &[(i32, Pid)],
        spent: impl Fn() -> u64,
        stat: impl Fn(Pid) -> Option<Stat>,
    ) -> Vec<Numbers> {
        let here: HashMap<i32, Pid> = all.iter().copied().collect();
        self.processes.retain(|pid, _| here.contains_key(pid));
        let (lively, others): (Vec<_>, Vec<_>) =
            all.iter().copied().partition(|(pid, _)| self.processes.get(pid).is_none_or(|told| told.lively));
        let mut changed: Vec<_> = lively.into_iter().filter_map(|(pid, host)| self.look_at(pid, stat(host)?)).collect();
        if self.elsewhere.any(spent()) {
            changed.extend(others.into_iter().filter_map(|(pid, host)| self.look_at(pid, stat(host)?)));
            // That is in what had been spent.
            self.elsewhere.seen = 0;
        }
        changed
    }

    fn look_at(&mut self, pid: i32, stat: Stat) -> Option<Numbers> {
        if matches!(stat.state, b'Z' | b'X') {
            // Its end is told otherwise.
            return None;
        }
        let numbers = Numbers {
            pid,
            state: stat.state.into(),
            utime: stat.utime,
            stime: stat.stime,
            threads: stat.threads,
            vsize: stat.vsize,
            rss: stat.rss.saturating_mul(PAGE),
        };
        let active = matches!(stat.state, b'R' | b'D');
        let before = self.processes.get_mut(&pid).filter(|told| told.starttime == stat.starttime);
        let Some(told) = before else {
            let told = Told { starttime: stat.starttime, numbers, lively: true };
            self.processes.insert(pid, told);
            return Some(numbers);
        };
        let more = (numbers.utime + numbers.stime).saturating_sub(told.numbers.utime + told.numbers.stime);
        self.elsewhere.seen += more;
        told.lively = active || more > 0;
        (std::mem::replace(&mut told.numbers, numbers) != numbers).then_some(numbers)
    }
}

fn stat(host: Pid) -> Option<Stat> {
    let mut text = [0; 1024];
    let length = File::open(format!("/proc/{host}/stat")).ok()?.read(&mut text).ok()?;
    Stat::try_from(text.get(..length)?).ok()
}

/// What the machine has spent on programs and in the kernel for them, without this agent, clock ticks.
fn spent() -> u64 {
    let mut text = [0; 256];
    let length = File::open("/proc/stat").and_then(|mut file| file.read(&mut text)).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..length]);
    // "cpu", user, nice, system, ...
    let all: u64 = text.split_ascii_whitespace().skip(1).take(3).filter_map(|n| n.parse::<u64>().ok()).sum();
    let own = Pid::new(std::process::id() as i32).and_then(stat).map_or(0, |own| own.utime + own.stime);
    all.saturating_sub(own)
}

impl Actor {
    pub(super) fn look_what_they_do(&mut self) {
        self.watch.due = tokio::time::Instant::now() + PAUSE;
        let Some(mut known) = self.watch.known.take() else { return };
        let (all, facts, link) = (self.table.all_running(), self.facts.clone(), self.watch.link);
        tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let changed = known.look(&all, spent, stat);
            let seen = Seen { link, known, changed, took: began.elapsed() };
            // An agent that ends wants to know nothing more.
            let _ = facts.blocking_send(Fact::Seen(Box::new(seen)));
        });
    }

    pub(super) fn seen(&mut self, seen: Seen) {
        if seen.link != self.watch.link {
            // Begun for another master, who was told before.
            return;
        }
        self.watch.known = Some(seen.known);
        self.watch.due = self.watch.due.max(tokio::time::Instant::now() + seen.took * SHARE);
        if !seen.changed.is_empty() {
            self.say(from_node::Body::Doing(Doing { processes: seen.changed }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// Processes 1 to 4 here, as they are, the time that the machine has spent, and who was looked at.
    struct Machine {
        known: Known,
        stats: HashMap<i32, (u8, u64)>,
        spent: u64,
    }

    impl Machine {
        fn new() -> Machine {
            let stats = (1..=4).map(|pid| (pid, (b'S', 0))).collect();
            Machine { known: Known::default(), stats, spent: 1000 }
        }

        /// One works for so long.
        fn works(&mut self, pid: i32, state: u8, ticks: u64) {
            let stat = self.stats.entry(pid).or_default();
            *stat = (state, stat.1 + ticks);
            self.spent += ticks;
        }

        /// How many are looked at, and who is told.
        fn look(&mut self) -> (usize, Vec<(i32, u8, u64)>) {
            let mut all: Vec<_> = self.stats.keys().filter_map(|pid| Some((*pid, Pid::new(*pid)?))).collect();
            all.sort();
            let looked = Cell::new(0);
            let stats = RefCell::new(&self.stats);
            let changed = self.known.look(&all, || self.spent, |host| {
                looked.set(looked.get() + 1);
                let (state, utime) = stats.borrow().get(&host.get()).copied()?;
                let text = format!("{host} (x) {} 1 1 1 0 -1 0 0 0 0 0 {utime} 0 0 0 20 0 1 0 77 4096 1 0 0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0", char::from(state));
                Stat::try_from(text.as_bytes()).ok()
            });
            (looked.get(), changed.into_iter().map(|n| (n.pid, n.state as u8, n.utime)).collect())
        }
    }

    #[test]
    fn sleepers_are_not_looked_at() {
        let mut machine = Machine::new();
        assert_eq!(machine.look().1.len(), 4);
        // Fresh ones are looked at twice.
        assert_eq!(machine.look(), (4, vec![]));
        for _ in 0..5 {
            assert_eq!(machine.look(), (0, vec![]));
        }
    }

    #[test]
    fn who_works_is_looked_at_until_it_sleeps_and_hides_nobody() {
        let mut machine = Machine::new();
        machine.look();
        machine.look();
        machine.works(2, b'R', 300);
        assert_eq!(machine.look(), (4, vec![(2, b'R', 300)]));
        machine.works(2, b'R', 300);
        assert_eq!(machine.look(), (1, vec![(2, b'R', 600)]));
        machine.works(2, b'R', 300);
        machine.works(3, b'S', 20);
        assert_eq!(machine.look(), (4, vec![(2, b'R', 900), (3, b'S', 20)]));
        machine.works(2, b'S', 1);
        assert_eq!(machine.look(), (2, vec![(2, b'S', 901)]));
        assert_eq!(machine.look().0, 1);
        assert_eq!(machine.look().0, 0);
    }

    #[test]
    fn all_are_looked_at_now_and_then() {
        let mut machine = Machine::new();
        let looks: usize = (0..30).map(|_| machine.look().0).sum();
        assert_eq!(looks, 4 + 4 + 2 * 4);
    }
}
