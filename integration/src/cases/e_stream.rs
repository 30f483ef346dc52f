//! Group E: the bytes, once a connection stands. Through two sidecars of ours unless a peer is needed that
//! misbehaves.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    app::{self, End, GREETING, Manner, pattern},
    peer::{self, Server, Tls},
    runner::{Case, case},
    wait::{self, SOON},
    world::{Pair, World},
};

pub(crate) const CASES: &[Case] = &[
    case!(e1_a_reply_after_the_clients_end_arrives_whole),
    case!(e2_a_client_goes_on_sending_after_the_servers_end),
    case!(e3_large_transfers_both_ways_are_exact_in_bounded_memory).alone(),
    case!(e3_a_gibibyte_each_way_is_exact_in_bounded_memory).drill(),
    case!(e4_a_reset_of_either_side_reaches_the_other_and_leaves_nothing_behind),
    case!(e5_a_server_that_speaks_first_is_heard),
    case!(e6_a_slow_reader_holds_back_its_sender_in_bounded_memory).heavy(),
    case!(e7_an_end_without_close_notify_is_a_reset_for_the_application),
    case!(e7_an_upstreams_end_without_close_notify_is_a_reset_for_the_application),
    case!(e8_idle_connections_wake_nobody).alone(),
    case!(e9_new_traffic_keys_of_the_peer_are_followed),
];

/// More than every buffer on the way together.
const REPLY: usize = 200_013;

async fn e1_a_reply_after_the_clients_end_arrives_whole(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::ReplyAfterEnd(REPLY)).await?;
    for _ in 0..5 {
        let mut client = through(&pair).await?;
        client.write_all(b"a request").await?;
        client.shutdown().await?;
        let (reply, end) = app::read_to_end(&mut client).await?;
        ensure!(reply == pattern(REPLY), "{} of {REPLY} bytes came", reply.len());
        ensure!(end == End::Clean, "ended {end:?}");
    }
    // The same from a peer of the mesh, whose FIN is a close_notify.
    for tls in Tls::EACH {
        let mut client = pair.api.client("web").await?.tls(tls).connect(pair.api.public()).await?;
        client.write_all(b"a request").await?;
        client.shutdown().await?;
        let (reply, end) = app::read_to_end(&mut client).await?;
        ensure!(reply == pattern(REPLY), "{tls:?}: {} of {REPLY} bytes came", reply.len());
        ensure!(end == End::Clean, "{tls:?}: ended {end:?}");
    }
    Ok(())
}

/// A connection of the application of `web`, once `web` knows an instance of `api`.
async fn through(pair: &Pair) -> Result<TcpStream> {
    wait::until("a way to api", SOON, || async {
        let before = pair.api.app.accepted();
        let stream = app::connect(pair.local).await?;
        wait::until("the connection at api", Duration::from_millis(700), || async {
            ensure!(pair.api.app.accepted() > before, "none");
            Ok(())
        })
        .await?;
        Ok(stream)
    })
    .await
}

async fn e2_a_client_goes_on_sending_after_the_servers_end(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::GreetAndEnd).await?;
    let mut client = through(&pair).await?;
    let (greeting, end) = app::read_to_end(&mut client).await?;
    ensure!(greeting == GREETING && end == End::Clean, "{} bytes, {end:?}", greeting.len());
    let before = pair.api.app.bytes();
    client.write_all(&pattern(REPLY)).await?;
    client.shutdown().await?;
    wait::until("all bytes at the server", SOON, || async {
        let came = pair.api.app.bytes() - before;
        ensure!(came == REPLY as u64, "{came} of {REPLY}");
        Ok(())
    })
    .await?;
    pair.api.lictor.measures("connections_open", 0).await?;
    pair.web.measures("connections_open", 0).await?;
    let ended = pair.api.lictor.metrics().await?;
    ensure!(ended.label("finished") >= 1, "{}", ended.not_zero());
    Ok(())
}

async fn e3_large_transfers_both_ways_are_exact_in_bounded_memory(world: Arc<World>) -> Result<()> {
    transfer(&world, 64 << 20).await
}

async fn e3_a_gibibyte_each_way_is_exact_in_bounded_memory(world: Arc<World>) -> Result<()> {
    transfer(&world, 1 << 30).await
}

/// Sends `size` bytes each way at once.
async fn transfer(world: &World, size: usize) -> Result<()> {
    let pair = world.pair(Manner::Hand).await?;
    let (client, server) = wait::until("a way to api", SOON, || async {
        let client = app::connect(pair.local).await?;
        let server = wait::within("its other end", Duration::from_millis(700), pair.api.app.next()).await??;
        Ok((client, server))
    })
    .await?;
    let before = [pair.web.process().status("VmRSS")?, pair.api.lictor.process().status("VmRSS")?];
    let block = Arc::new(pattern(1 << 20));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let sent = [
        tokio::spawn(send(client_write, Arc::clone(&block), size)),
        tokio::spawn(send(server_write, Arc::clone(&block), size)),
    ];
    let read =
        [tokio::spawn(check(client_read, Arc::clone(&block), size)), tokio::spawn(check(server_read, block, size))];
    for task in sent.into_iter().chain(read) {
        task.await??;
    }
    let after = [pair.web.process().status("VmHWM")?, pair.api.lictor.process().status("VmHWM")?];
    for (before, after) in before.into_iter().zip(after) {
        let grown = after.saturating_sub(before) >> 10;
        ensure!(grown < 32 << 10, "the transfer of {} MiB grew the process by {grown} KiB", size >> 20);
    }
    Ok(())
}

async fn send(mut stream: tokio::net::tcp::OwnedWriteHalf, block: Arc<Vec<u8>>, size: usize) -> Result<()> {
    let mut left = size;
    while left > 0 {
        let next = left.min(block.len());
        stream.write_all(&block[..next]).await.context("sending")?;
        left -= next;
    }
    stream.shutdown().await?;
    Ok(())
}

async fn check(mut stream: tokio::net::tcp::OwnedReadHalf, block: Arc<Vec<u8>>, size: usize) -> Result<()> {
    let mut came = 0;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = stream.read(&mut buffer).await.context("reading")?;
        if read == 0 {
            ensure!(came == size, "{came} of {size} bytes came");
            return Ok(());
        }
        let mut seen = &buffer[..read];
        while !seen.is_empty() {
            let at = came % block.len();
            let next = seen.len().min(block.len() - at);
            ensure!(seen[..next] == block[at..at + next], "a byte near {came} differs");
            seen = &seen[next..];
            came += next;
        }
    }
}

async fn e4_a_reset_of_either_side_reaches_the_other_and_leaves_nothing_behind(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::Hand).await?;
    let both = || async {
        let client = app::connect(pair.local).await?;
        let server = wait::within("its other end", Duration::from_millis(700), pair.api.app.next()).await??;
        Ok((client, server))
    };
    let (client, mut server) = wait::until("a way to api", SOON, both).await?;
    peer::reset(client)?;
    app::is_reset(&mut server).await.context("the client resets")?;
    let (mut client, server) = wait::until("a way to api", SOON, both).await?;
    peer::reset(server)?;
    app::is_reset(&mut client).await.context("the server resets")?;
    let mut client = pair.api.client("web").await?.connect(pair.api.public()).await?;
    client.write_all(b"x").await?;
    client.flush().await?;
    let mut server = pair.api.app.next().await?;
    client.reset()?;
    app::is_reset(&mut server).await.context("the peer of the mesh resets")?;
    for lictor in [&pair.web, &pair.api.lictor] {
        lictor.measures("connections_open", 0).await?;
        lictor.measures("connection_slots_used", 0).await?;
    }
    Ok(())
}

async fn e5_a_server_that_speaks_first_is_heard(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::Greet).await?;
    let mut client = through(&pair).await?;
    let mut greeting = vec![0; GREETING.len()];
    wait::within("the greeting", SOON, client.read_exact(&mut greeting)).await??;
    ensure!(greeting == GREETING);
    app::echoes(&mut client, b"HELO").await
}

async fn e6_a_slow_reader_holds_back_its_sender_in_bounded_memory(world: Arc<World>) -> Result<()> {
    let pair = world.pair(Manner::Hand).await?;
    let (client, mut server) = wait::until("a way to api", SOON, || async {
        let client = app::connect(pair.local).await?;
        let server = wait::within("its other end", Duration::from_millis(700), pair.api.app.next()).await??;
        Ok((client, server))
    })
    .await?;
    let before = [pair.web.process().status("VmRSS")?, pair.api.lictor.process().status("VmRSS")?];
    let (_read, mut write) = client.into_split();
    let block = pattern(1 << 20);
    let mut sent = 0;
    // Until nothing moves for a second: all buffers are full.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(1), write.write(&block[sent % block.len()..])).await
    {
        sent += written?;
        ensure!(sent < 256 << 20, "nobody holds the sender back");
    }
    let after = [pair.web.process().status("VmRSS")?, pair.api.lictor.process().status("VmRSS")?];
    for (before, after) in before.into_iter().zip(after) {
        let grown = after.saturating_sub(before) >> 10;
        ensure!(grown < 16 << 10, "a slow reader grew the process by {grown} KiB");
    }
    write.shutdown().await?;
    drop(write);
    let mut came = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = wait::within("the rest", SOON, server.read(&mut buffer)).await??;
        if read == 0 {
            break;
        }
        for byte in &buffer[..read] {
            ensure!(*byte == block[came % block.len()], "byte {came} differs");
            came += 1;
        }
    }
    ensure!(came == sent, "{came} of {sent} bytes came");
    Ok(())
}

async fn e7_an_end_without_close_notify_is_a_reset_for_the_application(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Hand).await?;
    for tls in Tls::EACH {
        let mut client = api.client("web").await?.tls(tls).connect(api.public()).await?;
        client.write_all(b"half a mess").await?;
        client.flush().await?;
        let mut app = api.app.next().await?;
        let mut part = [0; 11];
        app.read_exact(&mut part).await?;
        drop(client.into_tcp());
        app::is_reset(&mut app).await.with_context(|| format!("{tls:?}"))?;
    }
    api.lictor.counted("truncated", 2).await
}

async fn e7_an_upstreams_end_without_close_notify_is_a_reset_for_the_application(world: Arc<World>) -> Result<()> {
    let web = world.outbound().await?;
    let mut options = web.good().await?;
    options.hand = true;
    let server = Server::start(&options).await?;
    web.add("api-1", server.address()).await?;
    let (mut local, mut remote) = wait::until("a connection through the mesh", SOON, || async {
        let local = app::connect(web.local).await?;
        let remote = wait::within("its other end", Duration::from_millis(700), server.next()).await??;
        Ok((local, remote))
    })
    .await?;
    remote.write_all(b"half a mess").await?;
    remote.flush().await?;
    let mut part = [0; 11];
    local.read_exact(&mut part).await?;
    drop(remote.into_tcp());
    app::is_reset(&mut local).await
}

async fn e8_idle_connections_wake_nobody(world: Arc<World>) -> Result<()> {
    const IDLE: usize = 500;
    let api = world.inbound(Manner::Echo).await?;
    let client = api.client("web").await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut stream = client.connect(api.public()).await?;
        app::echoes(&mut stream, b"x").await?;
        idle.push(stream);
    }
    let pid = api.lictor.process().pid().as_raw_nonzero();
    let switches = || -> Result<u64> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(task?.path().join("status"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += line.context("no voluntary_ctxt_switches")?.trim().parse::<u64>()?;
        }
        Ok(sum)
    };
    let before = switches()?;
    wait::pass(Duration::from_secs(5)).await;
    let woken = switches()? - before;
    ensure!(woken < 150, "{IDLE} idle connections woke the process {woken} times in five seconds");
    for stream in &mut idle {
        app::echoes(stream, b"still here").await?;
    }
    Ok(())
}

async fn e9_new_traffic_keys_of_the_peer_are_followed(world: Arc<World>) -> Result<()> {
    let api = world.inbound(Manner::Echo).await?;
    let mut client = api.client("web").await?.tls(Tls::V13).connect(api.public()).await?;
    for round in 0..20_u8 {
        app::echoes(&mut client, &[round; 5000]).await?;
        client.update_keys()?;
    }
    app::echoes(&mut client, &pattern(300_000)).await
}
