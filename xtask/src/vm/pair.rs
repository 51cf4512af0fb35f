//! Two VMs at once, each with its kernel, linked by a network card: processes move between kernels. The tests of that
//! are one program of `bproc-tests`, which runs on both machines: it leads on the master's and follows on the node's.

use anyhow::{Context, Result, bail};

use super::machine::{Echo, Link};
use super::programs::{Job, build_guest, test_binaries};
use super::results::Outcome;
use super::rootfs::Extra;
use super::{chosen, need_stage, prepare, sources, tables, verdict};

/// The two kernels between which programs must move.
pub(super) const KERNELS: &[&str] = &["6.1", "7.2"];

/// Names and addresses, reserved for documentation by RFC 5737: the link between the two VMs leads nowhere else.
pub(super) const MACHINES: [(&str, &str); 2] = [("vm-a", "192.0.2.1"), ("vm-b", "192.0.2.2")];

/// The test program.
const TESTS: &str = "kernels";
/// Its time limit in seconds.
const LIMIT: u64 = 3600;

/// Moves between two kernels: with the first on the master's machine, and, if wanted, the other way, too.
pub(super) fn run(kernels: &[String], both_ways: bool, filters: &[String]) -> Result<()> {
    let [first, second] = kernels else {
        bail!("a pair has two kernels: --kernels 6.1,7.2");
    };
    need_stage()?;
    let packages = ["bproc-tests".to_owned()];
    let program = chosen(test_binaries(&packages, filters)?, &[TESTS.to_owned()])?.remove(0);
    let mut extras = program.extras();
    extras.extend(sources()?);
    let [(_, here), (_, there)] = MACHINES;
    let mut leader = program.clone();
    leader.env.push(("BPROC_PAIR".into(), format!("master,{here},{there}")));
    let mut follower = program;
    follower.env.push(("BPROC_PAIR".into(), format!("node,{here}")));
    // Which tests are run the leader decides.
    follower.args.truncate(follower.args.len() - filters.len());
    let ways = if both_ways { vec![[first, second], [second, first]] } else { vec![[first, second]] };
    let mut outcomes = Vec::new();
    for [master, node] in ways {
        println!("Linux {master} as master, {node} as node, emulated: they boot in ten to sixty seconds");
        let mut jobs = [&leader, &follower].map(|program| vec![program.job(LIMIT)]);
        jobs[0][0].name = format!("{TESTS}/master");
        jobs[1][0].name = format!("{TESTS}/node");
        outcomes.extend(machines([master, node], jobs, &extras, false)?);
    }
    tables::print(&outcomes);
    verdict(&outcomes)
}

/// Two VMs at once: each has its kernel and jobs, and finds the other by the names of [`MACHINES`].
pub(super) fn machines(
    kernels: [&str; 2],
    jobs: [Vec<Job>; 2],
    extras: &[Extra],
    all_output: bool,
) -> Result<Vec<Outcome>> {
    let guest = build_guest()?;
    let mut machines = Vec::new();
    for (index, (series, jobs)) in kernels.iter().zip(&jobs).enumerate() {
        let (name, address) = MACHINES[index];
        let other = 1 - index;
        let link = Link {
            remote: format!("../{}-{}", kernels[other], MACHINES[other].0).into(),
            address: format!("{address}/24"),
            number: index as u8 + 1,
        };
        let prefix = format!("{name} ({series}): ");
        let echo = if all_output { Echo::All(prefix) } else { Echo::Progress(prefix) };
        machines.push(prepare(&guest, series, name, jobs, extras, Some(link), echo)?);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = machines.iter().map(|machine| scope.spawn(|| machine.run())).collect();
        threads.into_iter().map(|thread| thread.join().ok().context("a VM's thread panicked")?).collect()
    })
}
