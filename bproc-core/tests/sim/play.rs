//! Runs from seeds: what is played, and with what.

use super::*;

/// Lets things happen until nothing more does.
fn settle(world: &mut World, seed: u64) {
    for node in 0..3 {
        if !world.machines[node].linked {
            world.link(node as i32);
        }
    }
    let mut steps = 0;
    loop {
        while world.deliver() {
            steps += 1;
            assert!(steps < 100_000, "seed {seed}: no rest");
        }
        // As now and then: nobody is waited for any longer.
        let mut out = vec![];
        world.master.settle_calls(true, &mut out);
        if out.is_empty() {
            return;
        }
        world.perform(out);
    }
}

fn play(crashes: bool, moves: bool, kills: bool) {
    let runs = std::env::var("BPROC_SIM_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let first = std::env::var("BPROC_SIM_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for seed in first..first + runs {
        let _failing = check::Seed(seed);
        let mut world = World::new(seed, 3, moves);
        world.kills = kills;
        for _ in 0..60 {
            world.act(crashes);
            for _ in 0..world.dice.below(12) {
                world.deliver();
            }
        }
        settle(&mut world, seed);
        if world.recovering {
            let connected = world.ghosts.iter().filter(|(_, g)| g.connected && g.at_gate.is_none());
            let connected = connected.map(|(p, _)| pid(*p)).collect();
            let mut out = vec![];
            world.master.recovered(&connected, &mut out);
            world.perform(out);
            settle(&mut world, seed);
        }
        world.check(seed);
    }
}

#[test]
fn promises_hold_in_every_order() {
    play(false, false, false);
}

#[test]
fn promises_hold_when_agents_are_killed() {
    play(true, false, false);
}

#[test]
fn promises_hold_while_processes_move() {
    play(false, true, false);
}

#[test]
fn promises_hold_when_agents_are_killed_while_processes_move() {
    play(true, true, false);
}

#[test]
fn promises_hold_while_starters_are_killed() {
    play(false, false, true);
}

#[test]
fn promises_hold_while_starters_and_agents_are_killed() {
    play(true, false, true);
}

#[test]
fn promises_hold_while_starters_are_killed_and_processes_move() {
    play(false, true, true);
}
