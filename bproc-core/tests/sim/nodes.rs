//! What happens on nodes, and what they tell.

use super::*;

impl World {
    pub(super) fn spawn(&mut self, node: usize, p: i32) {
        let facts = SpawnFacts {
            pid: pid(p),
            parent: Some(pid(PARENT)),
            node: NodeId(node as i32),
            uid: 0,
            gids: [0].into(),
            relatives: vec![],
            starter: self.starter(p),
        };
        self.asked.insert(self.next_ask, p);
        self.next_ask += 1;
        let mut out = vec![];
        self.master.spawn(Ask(self.next_ask - 1), facts, &mut out);
        self.perform(out);
    }

    /// A start has come to its exec.
    pub(super) fn runs_now(&mut self, node: usize, p: i32) {
        *self.runs.entry(p).or_default() += 1;
        self.started_by.extend(self.starter(p).map(|starter| (p, starter)));
        self.machines[node].skeletons.remove(&p);
        self.machines[node].processes.insert(p, Process::default());
    }

    pub(super) fn finish_start(&mut self, node: usize) {
        let m = &mut self.machines[node];
        let at = self.dice.below(m.starting.len());
        let Some((p, number)) = m.starting.iter().nth(at).map(|(p, n)| (*p, *n)) else { return };
        m.starting.remove(&p);
        let good = self.dice.below(5) > 0;
        if good {
            self.runs_now(node, p);
        }
        self.tell(node, Event::Spawned(p, good));
        self.done(node, number);
        let held = std::mem::take(&mut self.machines[node].held);
        for (number, of, order) in held {
            if of == p {
                self.obey_order(node, order);
                self.done(node, number);
            } else {
                self.machines[node].held.push_back((number, of, order));
            }
        }
    }

    /// An order is carried out. Those of a former master count nothing.
    pub(super) fn done(&mut self, node: usize, number: u64) {
        let m = &mut self.machines[node];
        m.done.insert(number);
        let open = m.starting.values().chain(m.held.iter().map(|(number, _, _)| number)).filter(|n| **n > 0).min();
        m.acks.push_back(open.map_or(m.orders_seen, |first| first - 1));
    }

    pub(super) fn end(&mut self, node: usize, p: i32, status: i32) {
        let m = &mut self.machines[node];
        let process = m.processes.get_mut(&p).unwrap();
        if process.ended.is_some() {
            return;
        }
        process.ended = Some(status);
        let parent = process.parent;
        // In person: a parent that has gone elsewhere reaps there.
        let natural = parent.is_some_and(|parent| self.machines[node].processes.contains_key(&parent));
        if self.is_leaving(node, p) {
            // Perhaps it is its stand-in's end: that is told when it is known what became of it.
            return;
        }
        self.tell(node, Event::Exited(p, status));
        // Parents reap or not; what one leaves behind is held by the node's init, which waits for the order to forget.
        if natural && self.dice.below(2) == 0 {
            self.tell(node, Event::Reaped(p));
            self.machines[node].processes.entry(p).and_modify(|p| p.gone = true);
        }
    }

    pub(super) fn carry_out(&mut self, node: usize) {
        let (number, order) = self.machines[node].orders.pop_front().unwrap();
        eprintln!("node {node} order {number} {order:?}");
        let m = &mut self.machines[node];
        if number <= m.orders_seen {
            return;
        }
        m.orders_seen = number;
        if let Order::Spawn(p) = order {
            m.starting.insert(p.get(), number);
            return;
        }
        let about = match &order {
            Order::Kill(p) | Order::Stop(p) | Order::Continue(p) => p.get(),
            Order::Signal { pid: p, .. } | Order::Copy { pid: p, .. } => p.get(),
            _ => 0,
        };
        if m.starting.contains_key(&about) {
            m.held.push_back((number, about, order));
            return;
        }
        if !m.done.contains(&number) {
            self.obey_order(node, order);
        }
        self.done(node, number);
    }

    pub(super) fn obey_order(&mut self, node: usize, order: Order) {
        match order {
            Order::Kill(p) if self.machines[node].processes.contains_key(&p.get()) => self.end(node, p.get(), 9),
            Order::Stop(p) => self.stop_process(node, p.get()),
            Order::Continue(p) => {
                if let Some(process) = self.machines[node].processes.get_mut(&p.get()) {
                    process.stopped = false;
                    self.tell(node, Event::Continued(p.get()));
                }
            }
            Order::Signal { pid: p, number, siginfo } => {
                let signal = i32::from_ne_bytes(*siginfo.first_chunk().unwrap());
                let m = &mut self.machines[node];
                let Some(process) = m.processes.get_mut(&p.get()) else { return };
                if number <= process.newest && signal == 18 && process.ended.is_none() {
                    // Told before: the master counts its answers.
                    let stopped = process.stopped;
                    self.tell(node, Event::Continued(p.get()));
                    if stopped {
                        self.tell(node, Event::Stopped(p.get(), 19));
                    }
                } else if signal == 9 {
                    self.end(node, p.get(), 9);
                } else if number > process.newest && process.ended.is_none() {
                    process.newest = number;
                    if signal == 0 || groups::take(&mut m.brought_before, p.get(), signal) {
                        return;
                    }
                    process.got.push(signal);
                    if signal == 18 {
                        process.stopped = false;
                        self.tell(node, Event::Continued(p.get()));
                    }
                }
            }
            Order::SignalGroup { group: GROUP, siginfo, call, copied } => {
                self.reach_group(node, i32::from_ne_bytes(*siginfo.first_chunk().unwrap()), call, &copied);
            }
            Order::Copy { pid: p, number, siginfo, group: GROUP, .. } => {
                self.note_copy(node, p.get(), number, i32::from_ne_bytes(*siginfo.first_chunk().unwrap()));
            }
            Order::Forget(p) => {
                self.machines[node].processes.entry(p.get()).and_modify(|p| p.gone |= p.ended.is_some());
            }
            Order::RelativeGone(p, _) => {
                if self.machines[node].skeletons.remove(&p.get()) {
                    self.stand_in_ended(node, p.get());
                }
            }
            order => self.obey_move(node, order),
        }
    }

    pub(super) fn stop_process(&mut self, node: usize, p: i32) {
        if let Some(process) = self.machines[node].processes.get_mut(&p)
            && process.ended.is_none()
            && !std::mem::replace(&mut process.stopped, true)
        {
            self.tell(node, Event::Stopped(p, 19));
        }
    }

    pub(super) fn event(&mut self, node: usize, out: &mut Vec<Action>) {
        let id = NodeId(node as i32);
        let (number, event) = self.machines[node].events.pop_front().unwrap();
        eprintln!("from node {node} {event:?}");
        assert!(self.master.accept_event(id, number));
        let m = &mut self.machines[node];
        m.told.push_back((number, event.clone()));
        if self.dice.below(2) == 0 {
            self.machines[node].told.clear();
        }
        match event {
            Event::Spawned(p, good) => {
                let result = if good { Ok(()) } else { Err(Refusal::Failed(id, 8, String::new())) };
                self.master.spawned(pid(p), result, out);
            }
            Event::Forked(parent, child) => {
                let child = Child { pid: pid(child), uid: 0, gid: 0 };
                self.master.forked(id, Pid::new(parent), child, out);
            }
            Event::Exited(p, status) => self.master.exited(pid(p), status, out),
            // As the agent does: another node has it now.
            Event::Stopped(p, _) | Event::Continued(p)
                if self.master.is_settled(pid(p)) && self.master.node_of(pid(p)).is_some_and(|at| at != id) => {}
            Event::Stopped(p, signal) => self.master.stopped(pid(p), signal, out),
            Event::Continued(p) => self.master.continued(pid(p), out),
            Event::Reaped(p) => self.master.reaped(pid(p), out),
            Event::Killed(p) => self.master.signal_from_node(id, pid(p), siginfo(9), None, out),
            Event::Move(p, id, said) => self.hear_of_move(p, id, said, out),
        }
    }
}
