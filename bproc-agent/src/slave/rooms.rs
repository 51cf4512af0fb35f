//! Places for processes that come: a body among its relatives, and streams. The source may connect and ask while a place is
//! made; whoever answers it is the mover, which has the place by then, or the reason why there is none.

use super::moving::{Half, failed};
use super::names::Naming;
use super::spawn::{Member, Spawner};
use super::{Actor, Fact};
use crate::checked;
use crate::mover;
use crate::trial;
use bproc_common::ghost::{left, op};
use bproc_common::id::Pid;
use bproc_mover::wire::{Keys, Receive, Refusal, Task};
use bproc_proto::Failure;
use bproc_proto::link::{self as wire, event};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A body for a process that comes, and what it is given.
#[derive(Debug)]
pub struct Room {
    member: Member,
    fds: Vec<(i32, OwnedFd)>,
}

/// A place that is being made.
#[derive(Debug)]
pub struct Making {
    order: Box<wire::Receive>,
    /// None: the move was given up.
    coming: Option<Coming>,
    /// Where a node that gives the image is waited for, and its port.
    giver: Option<(TcpListener, u16)>,
    port: Option<u16>,
    /// The master knows where the source is waited for.
    told: bool,
}

/// The connection of the source, which is waited for. Dropped: no more.
#[derive(Debug)]
struct Coming(JoinHandle<Result<(OwnedFd, Option<Keys>), Failure>>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Coming {
    async fn came(mut self) -> Result<(OwnedFd, Option<Keys>), Failure> {
        (&mut self.0).await.unwrap_or_else(|error| Err(failed(libc::EIO, format!("waiting for the source: {error}"))))
    }
}

impl Making {
    fn is_of(&self, r#move: wire::Move) -> bool {
        self.order.r#move == Some(r#move)
    }
}

impl Actor {
    /// A process is going to come.
    pub(super) fn receive(&mut self, order: wire::Receive) {
        let Some(r#move) = order.r#move else { return };
        let spec = order.spec.clone().unwrap_or_default();
        let children = order.children.iter().map(|c| c.pid).filter(|pid| self.table.is_here(*pid));
        let natives = self.natives(&spec).into_iter().chain(children).collect();
        self.name(Naming::room(order.r#move), &spec, &order.children);
        self.rouse_named(&spec);
        self.expect_children(spec.pid, &order.children);
        let order = Box::new(order);
        let making = Making {
            coming: Some(self.await_source(r#move, &order)),
            // Without one the source gives it.
            giver: crate::relay::listener(self.listen).ok().filter(|_| order.image != 0),
            order: order.clone(),
            port: None,
            told: false,
        };
        self.rooms.push(making);
        let (spawner, facts, address) = (self.spawner.clone(), self.facts.clone(), self.stdio_address.clone());
        tokio::spawn(async move {
            let result = spawner.make_room(&order, &address, natives).await;
            facts.send(Fact::RoomMade(r#move, result)).await.ok();
        });
    }

    fn await_source(&self, r#move: wire::Move, order: &wire::Receive) -> Coming {
        let (facts, listen, gate) = (self.facts.clone(), self.listen, self.gate.clone());
        let (from, token) = (mover::peer(order.from), order.token.clone());
        let stand_in = self.family.get(r#move.pid);
        Coming(tokio::spawn(async move {
            let told = |port| async move {
                // What it has been sent here goes to the process where that is, and what comes later is not overtaken by that.
                if let Some((stand_in, host)) = stand_in.and_then(|m| Some((m.ghost, Pid::new(m.host_pid)?))) {
                    stand_in.holds_queued(host).await;
                }
                facts.send(Fact::Listens(r#move, port)).await.ok();
            };
            mover::await_source(listen, &gate, from, &token, told).await
        }))
    }

    /// The source of a move is waited for. What is said of who gives the image needs the mover.
    pub(super) fn listens(&mut self, r#move: wire::Move, port: u16) {
        if let Some(making) = self.rooms.iter_mut().find(|making| making.is_of(r#move)) {
            making.port = Some(port);
            making.told = making.order.image == 0 && making.coming.is_some();
            if making.told {
                self.tell_receiving(r#move, port, 0);
            }
        } else if let Some(half) = self.halves.get(&r#move.pid).filter(|half| half.r#move == r#move) {
            let relay_port = half.giver.as_ref().map_or(0, |(_, port)| (*port).into());
            self.tell_receiving(r#move, port, relay_port);
        }
    }

    fn tell_receiving(&mut self, r#move: wire::Move, port: u16, relay_port: u32) {
        let receiving = wire::Receiving { r#move: Some(r#move), failure: None, port: port.into(), relay_port };
        self.tell(event::Body::Receiving(receiving));
    }

    /// The move is given up, as far as this node is concerned.
    pub(super) fn cancel(&mut self, r#move: wire::Move) {
        match self.rooms.iter_mut().find(|making| making.is_of(r#move)) {
            Some(making) => making.coming = None,
            None => self.tell_mover(Some(r#move), Task::Proceed(false)),
        }
    }

    /// As [`Actor::cancel`], for all that are not made yet.
    pub(super) fn cancel_rooms(&mut self) {
        self.rooms.iter_mut().for_each(|making| making.coming = None);
    }

    pub(super) fn room_made(&mut self, r#move: wire::Move, result: Result<Room, Failure>) {
        let at = self.rooms.iter().position(|making| making.is_of(r#move));
        // Else it was of another life of the node.
        let Some(making) = at.map(|at| self.rooms.swap_remove(at)) else { return };
        let Making { order, coming, giver, port, told } = making;
        match (result, coming) {
            (Ok(room), Some(coming)) => {
                self.await_process(r#move, &order, room, coming, giver);
                if let (false, Some(port)) = (told, port) {
                    self.listens(r#move, port);
                }
            }
            (Err(failure), Some(coming)) if told => self.turn_away(r#move, &order, failure, coming),
            (Err(failure), _) => self.no_room(r#move, told, failure),
            (Ok(_), None) => self.no_room(r#move, told, failed(libc::ECANCELED, "the master gave the move up")),
        }
    }

    /// Nobody comes, and nobody has to be told but the master.
    fn no_room(&mut self, r#move: wire::Move, told: bool, failure: Failure) {
        self.stand_in_takes_signals(r#move.pid);
        self.no_longer_named(Naming::room(Some(r#move)));
        self.reap_kept(r#move.pid);
        if let Some(status) = self.ended_early.remove(&r#move.pid) {
            self.relative_ended(r#move.pid, status);
        }
        let (r#move, failure) = (Some(r#move), Some(failure));
        self.tell(match told {
            true => event::Body::Arrived(wire::Arrived { r#move, failure }),
            false => event::Body::Receiving(wire::Receiving { r#move, failure, ..Default::default() }),
        });
    }

    /// Nobody comes into its place.
    pub(super) fn stand_in_takes_signals(&self, pid: i32) {
        if let Some(stand_in) = self.family.get(pid) {
            stand_in.ghost.tell(op::HOLD, left::NONE, 0, vec![]);
        }
    }

    /// The source hears why nothing comes of it.
    fn turn_away(&mut self, r#move: wire::Move, order: &wire::Receive, failure: Failure, coming: Coming) {
        let refusal = Some(Refusal { number: failure.number, message: failure.message });
        let coming = async move {
            let (conn, keys) = coming.came().await?;
            Ok((Task::Receive(Receive { keys, refusal, ..Receive::default() }), vec![conn]))
        };
        self.start_half(Half::target(r#move, order, 0), None, coming);
    }

    fn await_process(
        &mut self,
        r#move: wire::Move,
        order: &wire::Receive,
        room: Room,
        coming: Coming,
        giver: Option<(TcpListener, u16)>,
    ) {
        if let Some(host) = Pid::new(room.member.host_pid) {
            // A skeleton must not be traced; a body must.
            self.kernel.remove_ghost(host);
        }
        let image = order.image;
        let (numbers, fds): (Vec<i32>, Vec<OwnedFd>) = room.fds.into_iter().unzip();
        let task = Receive {
            body: room.member.host_pid,
            pid: if image != 0 { image } else { r#move.pid },
            keys: None,
            fds: numbers,
            owner: order.spec.as_ref().and_then(crate::rights::owner),
            elevate: Some(mover::body(&self.ghost)),
            fallback: Some(self.stand_in()),
            wait: false,
            drop_files: order.drop_files,
            only_given: order.only_streams,
            relay: image != 0,
            refusal: None,
        };
        let handle = checked::member(room.member.host_pid, r#move.pid);
        let half = Half { handle, giver, ..Half::target(r#move, order, room.member.host_pid) };
        let coming = async move {
            let (conn, keys) = coming.came().await?;
            let all = [conn].into_iter().chain(fds).collect();
            Ok((Task::Receive(Receive { keys, ..task }), all))
        };
        self.start_half(half, None, coming);
    }
}

impl Half {
    /// At the target. Without a body (0) nothing comes.
    fn target(r#move: wire::Move, order: &wire::Receive, host_pid: i32) -> Half {
        Half {
            r#move,
            host_pid,
            handle: None,
            mover: None,
            streams: Vec::new(),
            recall: false,
            successor: Vec::new(),
            to: 0,
            spec: Some(Box::new(order.spec.clone().unwrap_or_default())),
            committed: false,
            leaving: false,
            unread: false,
            in_doubt: false,
            spread: 0,
            giver: None,
        }
    }
}

impl Spawner {
    /// Makes the body of a process that comes, in its place among the others, with skeletons of its children.
    async fn make_room(
        &self,
        order: &wire::Receive,
        stdio_address: &str,
        natives: BTreeSet<i32>,
    ) -> Result<Room, Failure> {
        let spec = order.spec.as_ref().ok_or_else(|| failed(libc::EINVAL, "a move without a process"))?;
        let member = match self.family.get(spec.pid) {
            Some(stand_in) => {
                self.tell_subreapers(spec);
                stand_in
            }
            None => {
                let body = self.make(spec, natives.clone()).await?.member;
                body.ghost.tell(op::HOLD, left::QUEUED, 0, vec![]);
                body
            }
        };
        let place = async {
            match spec.sid == spec.pid {
                true => self.settle(spec.pid, op::SETSID, 0).await?,
                false => self.settle(spec.pid, op::SETPGID, spec.pgid).await?,
            }
            self.make_children(spec.pid, &order.children, &natives).await
        };
        if !spec.path.is_empty() {
            let place = match self.place(spec) {
                Some(place) => place.await.unwrap_or_else(|error| Err(failed(libc::EIO, error.to_string())))?,
                None => None,
            };
            trial::can_execute(&member.ghost, spec, place.as_ref(), self.node).await?;
        }
        let streams = async {
            let (ends, forwarded) = self.streams(spec).await?;
            let attached = match self.attach(spec, forwarded, stdio_address).await {
                Ok(answer) => answer.await.map_err(anyhow::Error::from),
                Err(error) => Err(error),
            };
            attached.map(|_| ends).map_err(|error| {
                failed(libc::EIO, format!("node {}: the stdio service does not answer: {error:#}", self.node))
            })
        };
        let (place, ends) = tokio::join!(place, streams);
        place?;
        let ends = ends?;
        let numbers = spec.streams.iter().filter(|s| s.kind() != bproc_proto::stream::Kind::Closed).map(|s| s.fd);
        let mut fds: Vec<(i32, OwnedFd)> = numbers.zip(ends).collect();
        if order.socket > 0 {
            fds.extend(mover::good_answer(order.rank).map(|fd| (order.socket, fd)));
        }
        Ok(Room { member, fds })
    }
}
