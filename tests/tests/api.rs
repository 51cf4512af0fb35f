//! The gRPC service for schedulers.

use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bproc_proto::api::space_client::SpaceClient;
use bproc_proto::api::{MoveRequest, SignalRequest};
use bproc_proto::client::{Nodes, Processes, SetNode, Watch};
use bproc_tests::cluster::{Cluster, Role, eventually};
use bproc_tests::run::{patience, tie};
use bproc_tests::runner::{self, Test};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const LIMIT: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;

type Space = SpaceClient<Channel>;

/// Runs this with a connection that was made by this user.
fn as_user<T: Send>(cluster: &Cluster, uid: u32, body: impl AsyncFnOnce(Space) -> Result<T> + Send) -> Result<T> {
    let address = format!("unix:{}", cluster.run_dir().join("api.sock").display());
    let run = || {
        // SAFETY: integers; the system call itself changes this thread only, which ends with the call.
        ensure!(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) } == 0, "setresuid");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let talk = async { body(SpaceClient::new(Endpoint::try_from(address)?.connect().await?)).await };
            tokio::time::timeout(patience(LIMIT), talk).await.context("the service hangs")?
        })
    };
    std::thread::scope(|threads| threads.spawn(run).join().ok().context("the client panicked")?)
}

/// `sleep` on a node, started by this user.
fn sleeper(cluster: &Cluster, node: i32) -> Result<Child> {
    let mut bpsh = cluster.command("bpsh");
    bpsh.args([&node.to_string(), "sleep", "100"]).stdin(Stdio::null()).stdout(Stdio::null());
    let child = tie(&mut bpsh).spawn()?;
    eventually("it runs", LIMIT, || {
        let all = cluster.client()?.processes()?;
        let named = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        Ok(if all.iter().any(|p| named(p.pid)) { Ok(()) } else { Err(format!("{all:?}")) })
    })?;
    Ok(child)
}

fn refused<T>(result: Result<T, Status>, code: Code, word: &str) -> Result<()> {
    let status = result.err().context("it was not refused")?;
    ensure!(status.code() == code && status.message().contains(word), "{status:?}");
    ensure!(status.metadata().contains_key("bproc-errno"), "no number: {status:?}");
    Ok(())
}

fn nodes_and_their_changes(cluster: &Cluster) -> Result<()> {
    as_user(cluster, 0, async |mut space| {
        let list = space.list_nodes(Nodes {}).await?.into_inner().nodes;
        ensure!(list.len() == 2 && list.iter().all(|n| n.state == "up"), "{list:?}");
        let mut watch = space.watch_nodes(Watch {}).await?.into_inner();
        let first = watch.message().await?.context("no list")?;
        ensure!(first.nodes.len() == 2, "{first:?}");
        space.set_node(SetNode { number: 1, mode: Some(0o100), ..SetNode::default() }).await?;
        let mut mode = async |wanted| {
            loop {
                let list = watch.message().await?.context("the watch ended")?;
                if list.nodes.iter().any(|n| n.number == 1 && n.mode == wanted) {
                    return anyhow::Ok(());
                }
            }
        };
        mode(0o100).await?;
        space.set_node(SetNode { number: 1, mode: Some(0o111), ..SetNode::default() }).await?;
        mode(0o111).await?;
        let unknown = space.set_node(SetNode { number: 77, mode: Some(0), ..SetNode::default() }).await;
        refused(unknown, Code::NotFound, "77")
    })?;
    as_user(cluster, NOBODY, async |mut space| {
        let asked = SetNode { number: 1, mode: Some(0), ..SetNode::default() };
        refused(space.set_node(asked).await, Code::PermissionDenied, "")
    })
}

fn processes_are_moved_and_signalled(cluster: &Cluster) -> Result<()> {
    let mut bpsh = sleeper(cluster, 0)?;
    let find = async |space: &mut Space| -> Result<(i32, i32)> {
        let list = space.list_processes(Processes {}).await?.into_inner().processes;
        let sleep = list.iter().find(|p| p.comm == "sleep").with_context(|| format!("{list:?}"))?;
        Ok((sleep.pid, sleep.node))
    };
    let pid = as_user(cluster, 0, async |mut space| {
        let (pid, node) = find(&mut space).await?;
        ensure!(node == 0, "on node {node}");
        let moved = space.r#move(MoveRequest { pid, node: 1, drop_files: false }).await?.into_inner();
        ensure!(moved.frozen_ns > 0 && moved.bytes > 0, "{moved:?}");
        ensure!(find(&mut space).await? == (pid, 1), "not on node 1");
        refused(space.r#move(MoveRequest { pid, node: 9, drop_files: false }).await, Code::NotFound, "9")?;
        refused(space.r#move(MoveRequest { pid: -1, node: 0, drop_files: false }).await, Code::InvalidArgument, "-1")?;
        for pid in [-1, 0, 1] {
            refused(space.signal(SignalRequest { pid, signal: 9 }).await, Code::InvalidArgument, "process")?;
        }
        refused(space.signal(SignalRequest { pid, signal: 65 }).await, Code::InvalidArgument, "65")?;
        let own = std::process::id() as i32;
        refused(space.signal(SignalRequest { pid: own, signal: 0 }).await, Code::NotFound, "on no node")?;
        Ok(pid)
    })?;
    as_user(cluster, NOBODY, async |mut space| {
        refused(space.signal(SignalRequest { pid, signal: 9 }).await, Code::PermissionDenied, "belongs to")?;
        refused(space.r#move(MoveRequest { pid, node: 0, drop_files: false }).await, Code::PermissionDenied, "user")
    })?;
    as_user(cluster, 0, async |mut space| Ok(space.signal(SignalRequest { pid, signal: libc::SIGTERM }).await?))?;
    let status = bproc_tests::run::wait(&mut bpsh, LIMIT)?;
    ensure!(status == 255, "bpsh ended with {status}");
    cluster.quiet()
}

/// Bytes that are no gRPC end the connection, not the service.
fn garbage(cluster: &Cluster) -> Result<()> {
    use std::io::{Read, Write};
    let path = cluster.run_dir().join("api.sock");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff"] {
        let mut socket = std::os::unix::net::UnixStream::connect(&path)?;
        socket.set_read_timeout(Some(patience(LIMIT)))?;
        socket.write_all(bytes)?;
        // A reset is an end too; silence would be a time-out.
        let end = socket.read_to_end(&mut Vec::new());
        ensure!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "it hangs");
    }
    as_user(cluster, NOBODY, async |mut space| Ok(space.list_nodes(Nodes {}).await.map(drop)?))
}

/// A new agent serves at the same place.
fn a_new_agent(cluster: &Cluster) -> Result<()> {
    cluster.stop_agent(Role::Master, libc::SIGKILL)?;
    cluster.start_agent(Role::Master)?;
    cluster.wait_up()?;
    as_user(cluster, NOBODY, async |mut space| {
        let list = space.list_nodes(Nodes {}).await?.into_inner().nodes;
        ensure!(list.len() == 2, "{list:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    let tests = vec![
        Test::new("nodes_and_their_changes", nodes_and_their_changes),
        Test::new("processes_are_moved_and_signalled", processes_are_moved_and_signalled),
        Test::new("garbage", garbage),
        Test::new("a_new_agent", a_new_agent),
    ];
    runner::main(|| Cluster::start(2), tests, Cluster::close)
}
