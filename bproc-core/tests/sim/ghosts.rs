//! What ghosts do, and what they and the keeper tell.

use super::*;

impl World {
    pub(super) fn report(&mut self, p: i32, report: Report) {
        self.reports.entry(p).or_default().push_back(report);
    }

    pub(super) fn signal(&mut self, p: i32, signal: i32) {
        self.sent.entry(p).or_default().push(signal);
        self.forward(p, signal);
    }

    /// A ghost gets a signal, and passes it on if it is one.
    pub(super) fn forward(&mut self, p: i32, signal: i32) {
        let g = self.ghosts.get_mut(&p).unwrap();
        if g.taken {
            return g.late.push(signal);
        }
        g.sent += 1;
        g.unacknowledged.push_back((g.sent, signal));
        let number = g.sent;
        self.report(p, Report::Signal(p, number, signal));
    }

    pub(super) fn release(&mut self, p: i32) {
        let Some(g) = self.ghosts.get_mut(&p) else { return };
        g.open = true;
        if let (Some(status), None) = (g.at_gate, g.gone) {
            g.gone = Some(status);
            self.keeper.push_back(Word::Gone(p));
        }
    }

    pub(super) fn end_ghost(&mut self, p: i32, status: i32) {
        eprintln!("    end ghost {p} {status}");
        let Some(g) = self.ghosts.get_mut(&p) else { return };
        if g.at_gate.is_some() || g.gone.is_some() {
            return;
        }
        g.at_gate = Some(status);
        let open = g.open;
        let commands = std::mem::take(&mut g.commands);
        for command in commands {
            if let GhostCommand::Clone(child) = command {
                self.report(p, Report::Cloned(child.get(), Err(3)));
            }
        }
        if let Some(reports) = self.reports.get_mut(&p)
            && self.dice.below(2) == 0
        {
            let lost = |r: &Report| if let Report::Cloned(child, Ok(())) = r { Some(*child) } else { None };
            self.keeper.extend(reports.iter().filter_map(lost).map(Word::NoAnswer));
            reports.retain(|r| lost(r).is_none());
        }
        let g = self.ghosts.get_mut(&p).unwrap();
        if open {
            g.gone = Some(status);
            self.keeper.push_back(Word::Gone(p));
        } else {
            self.keeper.push_back(Word::AtGate(p));
        }
    }

    pub(super) fn continue_ghost(&mut self, p: i32) {
        if let Some(g) = self.ghosts.get_mut(&p)
            && std::mem::take(&mut g.stopped)
        {
            g.thawed = false;
            self.keeper.push_back(Word::Continued(p));
        }
    }

    pub(super) fn stop_ghost(&mut self, p: i32, own: bool) {
        if let Some(g) = self.ghosts.get_mut(&p)
            && g.at_gate.is_none()
            && !std::mem::replace(&mut g.stopped, true)
        {
            self.keeper.push_back(Word::Stopped(p, own));
        }
    }

    pub(super) fn clone(&mut self, parent: i32, child: i32) {
        let starter = self.ghosts.get(&parent).and_then(|g| g.starter);
        self.ghosts.insert(child, Ghost { made: true, parent, starter, ..Ghost::default() });
        self.keeper.push_back(Word::Adopted(child));
        self.report(parent, Report::Cloned(child, Ok(())));
        self.report(child, Report::Hello(parent));
    }

    pub(super) fn word(&mut self, out: &mut Vec<Action>) {
        eprintln!("keeper {:?}", self.keeper.front());
        match self.keeper.pop_front().unwrap() {
            Word::Held(p, there) => self.master.held(pid(p), if there { Ok(()) } else { Err(3) }, out),
            Word::Adopted(p) => self.master.adopted(pid(p), None, out),
            Word::Stopped(p, own) => self.master.ghost_stopped(pid(p), own, out),
            Word::Continued(p) => self.master.ghost_continued(pid(p)),
            Word::AtGate(p) => self.master.at_gate(pid(p), out),
            Word::Gone(p) => self.master.ghost_gone(pid(p), out),
            Word::NoAnswer(child) => self.master.cloned(pid(child), Err(3), out),
        }
    }

    pub(super) fn say(&mut self, p: i32, out: &mut Vec<Action>) {
        eprintln!("ghost {p} {:?}", self.reports[&p].front());
        let dead = self.ghosts.get(&p).is_some_and(|g| g.at_gate.is_some());
        match self.reports.get_mut(&p).and_then(VecDeque::pop_front).unwrap() {
            Report::Hello(parent) if !dead && self.ghosts.contains_key(&p) => {
                let ghost = self.ghosts.get_mut(&p).unwrap();
                ghost.connected = true;
                let starter = ghost.starter;
                self.master.ghost_connected(pid(p), Pid::new(parent), out);
                self.master.ghost_started_by(pid(p), starter, out);
            }
            Report::Hello(_) => {}
            Report::Signal(p, number, signal) => self.master.ghost_signal(pid(p), number, siginfo(signal), out),
            Report::Cloned(child, result) => self.master.cloned(pid(child), result, out),
            Report::Ready => self.master.ghost_ready(pid(p), out),
        }
    }

    pub(super) fn obey(&mut self, p: i32) {
        let g = self.ghosts.get_mut(&p).unwrap();
        eprintln!("ghost {p} obeys {:?}", g.commands.front());
        match g.commands.pop_front().unwrap() {
            GhostCommand::Exit(code) => self.end_ghost(p, Status::Exited(code as u8).to_raw()),
            GhostCommand::Die(signal) => self.end_ghost(p, signal),
            GhostCommand::Stop(_) => self.stop_ghost(p, true),
            GhostCommand::Clone(child) => self.clone(p, child.get()),
            GhostCommand::Ack(number) => {
                while g.unacknowledged.front().is_some_and(|(n, _)| *n <= number) {
                    g.unacknowledged.pop_front();
                }
            }
            GhostCommand::Starter(starter) => g.starter = Some(starter),
            GhostCommand::Report => self.report(p, Report::Ready),
            _ => {}
        }
    }
}
