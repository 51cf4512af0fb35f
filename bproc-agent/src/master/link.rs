//! The master's end of the links: gRPC server, one stream a node. Converts; decides nothing.

use super::Fact;
use super::address::Address;
use bproc_common::id::{Epoch, NodeId, Pid};
use bproc_config::net::PeerInfo;
use bproc_core::lease::Block;
use bproc_core::master::Order;
use bproc_core::master::moving::{Leaving, MoveId};
use bproc_core::master::nodes::Attach;
use bproc_proto::link::link_server::Link;
use bproc_proto::link::{self as wire, FromNode, ToNode, from_node, order, to_node};
use bproc_proto::{Failure, SpawnSpec};
use prost::Message;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What a link tells the master.
#[derive(Debug)]
pub enum LinkFact {
    /// A node wants to attach.
    Attach {
        /// Which.
        node: NodeId,
        /// Tells connections apart.
        id: u64,
        /// What it says of itself.
        hello: Box<wire::Hello>,
        /// To it.
        to: mpsc::UnboundedSender<Result<ToNode, Status>>,
        /// Answered: may it?
        answer: oneshot::Sender<bool>,
    },
    /// A message of an attached node.
    Message {
        /// Which.
        node: NodeId,
        /// Which connection.
        id: u64,
        /// What.
        body: Box<from_node::Body>,
    },
    /// The stream ended.
    Broken {
        /// Which.
        node: NodeId,
        /// Which connection.
        id: u64,
    },
}

/// Finds the node that a peer may claim to be: from its certificate, or its address where no certificates are used.
pub type Identify = dyn Fn(&PeerInfo) -> Result<NodeId, String> + Send + Sync;

/// The service.
pub struct Links {
    /// To the master.
    pub facts: mpsc::Sender<Fact>,
    /// Who is it?
    pub identify: Box<Identify>,
    /// Where nodes reach the master.
    pub address: Address,
}

#[tonic::async_trait]
impl Link for Links {
    type AttachStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<ToNode, Status>> + Send>>;

    async fn clocks(&self, _: Request<wire::ClocksRequest>) -> Result<Response<wire::ClocksReply>, Status> {
        Ok(Response::new(wire::ClocksReply {
            boot_id: crate::kernel::boot_id(),
            monotonic_ns: bproc_sys::time::monotonic_ns() as i64,
            boottime_ns: bproc_sys::time::boottime_ns() as i64,
        }))
    }

    async fn attach(&self, request: Request<Streaming<FromNode>>) -> Result<Response<Self::AttachStream>, Status> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("a connection without a peer"))?;
        let node = (self.identify)(&peer).map_err(|why| {
            tracing::warn!(peer = %peer.address, %why, "a link was refused");
            Status::permission_denied(why)
        })?;
        self.address.reached(node, peer.local.ip());
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(std::time::Duration::from_secs(10), stream.next())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))?;
        let Some(Ok(FromNode { body: Some(from_node::Body::Hello(hello)) })) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (to, receiver) = mpsc::unbounded_channel();
        let (answer, accepted) = oneshot::channel();
        let facts = self.facts.clone();
        let gone = |_| Status::unavailable("the master's agent is ending");
        facts
            .send(Fact::Link(LinkFact::Attach { node, id, hello: Box::new(hello), to, answer }))
            .await
            .map_err(gone)?;
        if accepted.await.unwrap_or(false) {
            tokio::spawn(async move {
                while let Some(Ok(message)) = stream.next().await {
                    let Some(body) = message.body.map(Box::new) else { continue };
                    if facts.send(Fact::Link(LinkFact::Message { node, id, body })).await.is_err() {
                        return;
                    }
                }
                facts.send(Fact::Link(LinkFact::Broken { node, id })).await.ok();
            });
        }
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

/// What a node says of itself, in the core's words.
pub fn attach(hello: &wire::Hello, leaving: Vec<Leaving>) -> Attach {
    Attach {
        epoch: Epoch(hello.epoch),
        instance: hello.instance,
        orders_seen: hello.orders_seen,
        inventory: hello
            .inventory
            .iter()
            .filter_map(|p| Some((Pid::new(p.pid)?, Pid::new(p.ppid).filter(|ppid| ppid.get() > 1))))
            .collect(),
        skeletons: hello.skeletons.iter().filter_map(|p| Pid::new(*p)).collect(),
        leases: hello.leases.iter().map(|l| Block { start: l.start, length: l.length }).collect(),
        leaving,
        arriving: hello.arriving.iter().filter_map(|m| Some((Pid::new(m.pid)?, MoveId(m.id)))).collect(),
    }
}

/// An order in the wire's words; `None` for a spawn whose spec is no longer wanted.
pub fn order(number: u64, order: &Order, spec: impl FnOnce(Pid) -> Option<SpawnSpec>) -> Option<ToNode> {
    let body = match order {
        Order::Spawn(pid) => order::Body::Spawn(spec(*pid)?),
        Order::Signal { pid, number, siginfo } => order::Body::Signal(wire::Signal {
            pid: pid.get(),
            ghost_number: *number,
            siginfo: siginfo.clone(),
            ..Default::default()
        }),
        Order::Copy { pid, number, siginfo, group, call } => order::Body::Signal(wire::Signal {
            pid: pid.get(),
            ghost_number: *number,
            siginfo: siginfo.clone(),
            group: *group,
            call: *call,
        }),
        Order::SignalGroup { group, siginfo, call, copied } => order::Body::SignalGroup(wire::SignalGroup {
            group: *group,
            siginfo: siginfo.clone(),
            call: *call,
            copied: copied.iter().map(|pid| pid.get()).collect(),
        }),
        Order::Kill(pid) => order::Body::Signal(kernel_signal(*pid, libc::SIGKILL)),
        Order::Stop(pid) => order::Body::Signal(kernel_signal(*pid, libc::SIGSTOP)),
        Order::Continue(pid) => order::Body::Signal(kernel_signal(*pid, libc::SIGCONT)),
        Order::RelativeGone(pid, status) => {
            order::Body::RelativeEnded(wire::RelativeEnded { pid: pid.get(), status: *status })
        }
        Order::RelativeStopped(pid, signal) => {
            order::Body::RelativeStopped(wire::RelativeStopped { pid: pid.get(), signal: *signal })
        }
        Order::RelativeContinued(pid) => {
            order::Body::RelativeStopped(wire::RelativeStopped { pid: pid.get(), signal: 0 })
        }
        Order::Orphans { dead, orphans, line } => {
            let all = |pids: &[Pid]| pids.iter().filter_map(|pid| super::caller::relative(pid.get())).collect();
            order::Body::Orphans(wire::Orphans { of: dead.get(), children: all(orphans), line: all(line) })
        }
        Order::Decide(pid, id, moved) => {
            order::Body::Decide(wire::Decide { r#move: Some(named(*pid, *id)), moved: *moved })
        }
        Order::Cancel(pid, id) => order::Body::Cancel(named(*pid, *id)),
        // These have more to say than the core knows.
        Order::Survey(..) | Order::Receive(..) | Order::Depart(..) | Order::Children(..) | Order::Relay(..) => {
            return None;
        }
        Order::GoOn(pid, id) => order::Body::GoOn(named(*pid, *id)),
        Order::Forget(pid) => order::Body::Reap(pid.get()),
        Order::Lease(block) => order::Body::Lease(wire::Lease { start: block.start, length: block.length }),
        Order::Tune(_, change) => order::Body::Tune(wire::Tune::decode(change.as_slice()).ok()?),
        Order::Resize(pid, winsize) => order::Body::Resize(wire::Resize { pid: pid.get(), winsize: winsize.clone() }),
        Order::Power(what) => order::Body::Power(what.clone()),
    };
    Some(ToNode { body: Some(to_node::Body::Order(wire::Order { number, body: Some(body) })) })
}

/// A move in the wire's words.
pub fn named(pid: Pid, id: MoveId) -> wire::Move {
    wire::Move { pid: pid.get(), id: id.0 }
}

/// A signal that nobody's siginfo goes with.
fn kernel_signal(pid: Pid, signal: i32) -> wire::Signal {
    let siginfo = bproc_sys::signal::SigInfo::with(signal, libc::SI_KERNEL, 0, 0).0.to_vec();
    wire::Signal { pid: pid.get(), ghost_number: 0, siginfo, ..Default::default() }
}

/// A refusal to attach.
pub fn refused(number: i32, message: String, retry: bool) -> ToNode {
    let failure = Some(Failure { number, message });
    ToNode { body: Some(to_node::Body::Refused(wire::Refused { failure, retry })) }
}
