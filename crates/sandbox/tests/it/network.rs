//! No network, a list of hosts, or the host's own.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use fettle_app::ports::sandbox::{Network, Sandbox, SandboxError, SandboxLevel};
use tokio_util::sync::CancellationToken;

use crate::world::{PYTHON, has_python, world, worlds};

#[tokio::test]
async fn no_listener_of_the_host_can_be_reached() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp6 = TcpListener::bind("[::1]:0");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let name = format!("fettle-test-{}", std::process::id());
    let local = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    local.set_nonblocking(true).unwrap();
    for world in worlds().await {
        let port = tcp.local_addr().unwrap().port();
        world.fail(&format!("bash -c ': > /dev/tcp/127.0.0.1/{port}'")).await;
        world
            .succeed(&format!("bash -c 'echo leak > /dev/udp/127.0.0.1/{}'; true", udp.local_addr().unwrap().port()))
            .await;
        if let Ok(tcp6) = &tcp6 {
            world.fail(&format!("bash -c ': > /dev/tcp/::1/{}'", tcp6.local_addr().unwrap().port())).await;
        }
        if has_python() {
            let path = world.outside.join("socket");
            let _named = UnixListener::bind(&path).unwrap();
            for address in [format!("'\\0{name}'"), format!("'{path}'")] {
                let script = format!("import socket; socket.socket(socket.AF_UNIX).connect({address})");
                world.fail(&format!("{PYTHON} -c \"{script}\"")).await;
            }
            for family in
                ["AF_PACKET, socket.SOCK_RAW", "AF_VSOCK, socket.SOCK_STREAM", "AF_NETLINK, socket.SOCK_RAW, 12"]
            {
                world.fail(&format!("{PYTHON} -c 'import socket; socket.socket(socket.{family})'")).await;
            }
        }
    }
    assert!(tcp.accept().is_err() && local.accept().is_err() && udp.recv(&mut [0; 9]).is_err(), "something arrived");
}

#[tokio::test]
async fn loopback_works_inside_at_level_full() {
    let Some(world) = world(SandboxLevel::Full).await else { return };
    if !has_python() {
        return;
    }
    fs_err::write(
        world.workspace.join("serve.py"),
        "import http.server, threading, urllib.request\n\
         server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n\
         threading.Thread(target=server.serve_forever, daemon=True).start()\n\
         print(urllib.request.urlopen(f'http://localhost:{server.server_port}/page').read().decode())\n",
    )
    .unwrap();
    fs_err::write(world.workspace.join("page"), "served inside").unwrap();
    let text = world.succeed(&format!("{PYTHON} serve.py")).await;
    assert!(text.contains("served inside"), "{text}");
}

#[tokio::test]
async fn every_socket_is_refused_at_level_landlock_but_a_pair() {
    let Some(world) = world(SandboxLevel::Landlock).await else { return };
    if !has_python() {
        return;
    }
    world.succeed(&format!("{PYTHON} -c 'import socket; socket.socketpair()'")).await;
    for family in ["AF_INET", "AF_INET6", "AF_UNIX"] {
        world.fail(&format!("{PYTHON} -c 'import socket; socket.socket(socket.{family})'")).await;
    }
}

/// Answers each connection with `text`, for as long as the test runs.
fn serve(listener: TcpListener, text: &'static str) {
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            // The whole head, whose lines may come one by one: closing before the rest would take the answer back.
            let head = BufReader::new(&client).lines();
            head.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).for_each(drop);
            let length = text.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}");
            // Who asked may have gone.
            let _ = client.write_all(answer.as_bytes());
        }
    });
}

#[tokio::test]
async fn an_allow_list_opens_its_hosts_and_reports_the_others() {
    let Some(world) = world(SandboxLevel::Full).await else { return };
    let [open, shut] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [open_port, shut_port] = [&open, &shut].map(|listener| listener.local_addr().unwrap().port());
    serve(open, "an open door");
    serve(shut, "a shut door");
    let ask = |request: &str| {
        format!(
            "bash -c 'exec 3<>/dev/tcp/127.0.0.1/3128; printf \"{request}\\r\\n\\r\\n\" >&3; timeout 5 cat <&3'; echo;"
        )
    };
    let tunnel = format!(
        "bash -c 'exec 3<>/dev/tcp/127.0.0.1/3128; printf \"CONNECT 127.0.0.1:{open_port} HTTP/1.1\\r\\n\\r\\n\" >&3; \
         read -r line <&3; printf \"GET / HTTP/1.1\\r\\n\\r\\n\" >&3; echo tunnel \"$line\"; timeout 5 cat <&3';"
    );
    let script = [
        ask(&format!("GET http://127.0.0.1:{open_port}/ HTTP/1.1")),
        tunnel,
        ask(&format!("GET http://127.0.0.1:{shut_port}/ HTTP/1.1")),
        ask("CONNECT evil.example:443 HTTP/1.1"),
        ask("CONNECT evil.example:443 HTTP/1.1"),
        // A listed name that leads to this host.
        ask("CONNECT localhost:443 HTTP/1.1"),
        format!("bash -c ': > /dev/tcp/127.0.0.1/{open_port}' && echo DIRECT; echo $HTTPS_PROXY $CARGO_HTTP_PROXY"),
    ]
    .concat();
    let mut command = world.shell(&script);
    command.network = Network::AllowList { hosts: vec![format!("127.0.0.1:{open_port}"), "localhost".to_owned()] };
    let output = world.run(&command).await;
    let text = String::from_utf8_lossy(&output.output);
    assert_eq!(text.matches("an open door").count(), 2, "{text}");
    assert_eq!(text.matches("tunnel HTTP/1.1 200").count(), 1, "{text}");
    assert_eq!(text.matches("403 Forbidden").count(), 4, "{text}");
    assert!(!text.contains("a shut door") && !text.contains("DIRECT"), "{text}");
    assert!(text.trim_end().ends_with("http://127.0.0.1:3128 http://127.0.0.1:3128"), "{text}");
    let [other_port, unlisted, inner] = &output.denied_hosts[..] else { panic!("{:?}", output.denied_hosts) };
    assert_eq!(
        *other_port,
        format!("127.0.0.1 (listed without port {shut_port}; list it as 127.0.0.1:{shut_port} to allow that)")
    );
    assert_eq!(unlisted, "evil.example");
    assert!(inner.starts_with("localhost (resolves to the loopback address "), "{inner}");
    assert!(inner.ends_with("; list it as localhost:443 to allow that)"), "{inner}");
    assert!(text.contains(&format!("refused by the list of allowed hosts: {inner}\n")), "{text}");
}

#[tokio::test]
async fn an_allow_list_is_refused_at_level_landlock() {
    let Some(world) = world(SandboxLevel::Landlock).await else { return };
    let mut command = world.shell("true");
    command.network = Network::AllowList { hosts: vec!["crates.io".to_owned()] };
    let refused = world.sandbox.run(&command, &CancellationToken::new()).await;
    assert!(matches!(refused, Err(SandboxError::Unavailable(_))), "{refused:?}");
}

#[tokio::test]
async fn the_hosts_network_is_there_when_the_operator_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(listener, "reached the host");
    for world in worlds().await {
        let mut command = world.shell(&format!(
            "bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; echo >&3; cat <&3'; test -e /etc/resolv.conf"
        ));
        command.network = Network::Host;
        let output = world.run(&command).await;
        let text = String::from_utf8_lossy(&output.output);
        assert!(text.contains("reached the host"), "at level {}: {text}", world.level.name());
    }
}
