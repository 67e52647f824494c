//! Real connections to services that do not wait for IPVS, on a node that has none: backends on this node and on another.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use kube_router::apply::bpf::{Dataplane, Options};
use kube_router_common::{
    balance::{Backend, RingKey, Vip},
    config::{Config, Iface},
    flow::Flow,
    hooks::Hook,
    policy::{Peer, Service, ServiceKey},
    twin::cases::IF_UPLINK,
};

use crate::{
    live::on_a_node,
    net::{CLASS_2, Net, Pod, address, allow, attach, attach_pods, isolate, next_generation, write_pods},
    run,
};

const SERVICES: [(&str, [&str; 2]); 2] =
    [("10.96.0.1", ["10.1.0.2", "10.2.0.2"]), ("fd00:96::1", ["fd00:1::2", "fd00:2::2"])];
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

fn socket(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("address"), port)
}

/// Services of both families, each with one backend.
fn serve(dataplane: &Dataplane, backend_of: impl Fn(&[&'static str; 2]) -> &'static str, flags: u16) {
    let (maps, balance) = (dataplane.tables(), dataplane.balance());
    for (id, (service, backends)) in (1_u32..).zip(SERVICES) {
        let key = ServiceKey { address: address(service), port: PORT, protocol: 6, pad: 0 };
        maps.peers.put(&key.address, &Peer { class: 20, flags: Peer::SERVICE }).expect("peer");
        maps.services.put(&key, &Service::default()).expect("service");
        let flags = Backend::LIVE | Backend::OPEN | flags;
        let backend = Backend { address: address(backend_of(&backends)), port: TARGET_PORT, flags, vip: id };
        balance.backends.put(&id, &backend).expect("backend");
        balance.rings.put(&RingKey { ring: id, slot: 0 }, &id).expect("ring");
        let vip = Vip { id, ring: id, slots: 1, scheduler: Vip::RR, ..Vip::default() };
        balance.vips.put(&key, &vip).expect("vip");
    }
    let config = maps.config().expect("config");
    maps.set_config(&Config { flags: Config::FAST | Config::FAST_FLOWS, ..config }).expect("config");
}

fn bytes(seed: u8) -> Vec<u8> {
    (0..300_000_u32).map(|at| (at as u8).wrapping_mul(7).wrapping_add((at >> 8) as u8).wrapping_add(seed)).collect()
}

/// Hears the client out, then answers; it compares what it got.
fn answer_at(pod: &Pod, port: u16) {
    pod.run(move || {
        for any in ["::", "0.0.0.0"] {
            let any: IpAddr = any.parse().expect("address");
            // Where "::" takes both families the second bind is not needed.
            let Ok(listener) = TcpListener::bind((any, port)) else { continue };
            thread::spawn(move || {
                for connection in listener.incoming() {
                    let Ok(mut connection) = connection else { return };
                    thread::spawn(move || {
                        let mut heard = Vec::new();
                        let whole = connection.read_to_end(&mut heard).is_ok() && heard == bytes(1);
                        let _ = connection.write_all(&bytes(if whole { 2 } else { 3 }));
                    });
                }
            });
        }
    });
}

/// Says the client's end as the service's server sees it is the pod's own: it is the same on both sides.
fn talk(pod: &Pod, to: SocketAddr) -> std::io::Result<()> {
    pod.run(move || {
        let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        connection.set_read_timeout(Some(Duration::from_secs(20)))?;
        connection.write_all(&bytes(1))?;
        connection.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer)?;
        assert!(answer == bytes(2), "{to}: {} bytes, or the server got others", answer.len());
        Ok(())
    })
}

fn nat_flows(dataplane: &Dataplane) -> Vec<Flow> {
    let flows = dataplane.tables().flows.read_all().expect("flows");
    flows.into_iter().map(|(_, flow)| flow).filter(|flow| flow.is(Flow::NAT)).collect()
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter served"]
fn a_service_is_served_by_a_pod_of_the_node() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        serve(&dataplane, |[here, _]| here, 0);
        attach_pods(&mut dataplane);
        answer_at(&net.pod_2, TARGET_PORT);
        for (service, _) in SERVICES {
            for _ in 0..3 {
                talk(&net.pod_1, socket(service, PORT)).unwrap_or_else(|error| panic!("{service}: {error}"));
            }
        }
        assert_eq!(nat_flows(&dataplane).len(), 12, "two a connection");
        // Policies are about the backend, not the service.
        isolate(&dataplane, 1, false, true);
        next_generation(&dataplane);
        for (service, _) in SERVICES {
            let refused = talk(&net.pod_1, socket(service, PORT)).map_err(|error| error.kind());
            assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused), "{service}");
        }
        allow(&dataplane, 11, CLASS_2, TARGET_PORT);
        next_generation(&dataplane);
        for (service, _) in SERVICES {
            talk(&net.pod_1, socket(service, PORT)).unwrap_or_else(|error| panic!("{service}: {error}"));
        }
    });
}

/// The uplink is an interface that is known, with both hooks.
fn connect_node(dataplane: &mut Dataplane, net: &Net) -> Pod {
    let other = net.other_node();
    let row = Iface { flags: Iface::UPLINK, ..Iface::default() };
    dataplane.tables().ifaces.put(&IF_UPLINK, &row).expect("iface");
    for hook in [Hook::UplinkIn, Hook::UplinkOut] {
        attach(dataplane, IF_UPLINK, hook);
    }
    other
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter served"]
fn a_service_is_served_by_a_pod_of_another_node() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        serve(&dataplane, |[_, there]| there, Backend::REMOTE);
        attach_pods(&mut dataplane);
        let other = connect_node(&mut dataplane, &net);
        answer_at(&other, TARGET_PORT);
        for (service, [_, there]) in SERVICES {
            talk(&net.pod_1, socket(there, TARGET_PORT)).unwrap_or_else(|error| panic!("routes: {there}: {error}"));
            for _ in 0..3 {
                talk(&net.pod_1, socket(service, PORT)).unwrap_or_else(|error| panic!("{service}: {error}"));
            }
        }
        assert_eq!(nat_flows(&dataplane).len(), 12, "two a connection");
    });
}

/// Small ones and such as take several fragments, there and back.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter served"]
fn datagrams_of_any_size_get_to_a_service_and_back() {
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        serve_datagrams(&dataplane, |[here, _]| here, 0);
        attach_pods(&mut dataplane);
        echo_at(&net.pod_2, TARGET_PORT);
        for (service, _) in SERVICES {
            for length in [0, 1, 1_400, 3_000, 9_001] {
                let to = socket(service, PORT);
                assert_eq!(echo(&net.pod_1, to, length).map_err(|error| error.kind()), Ok(()), "{to}: {length} bytes");
            }
        }
        assert_eq!(nat_flows(&dataplane).len(), 4);
    });
}

/// The same services, of UDP.
fn serve_datagrams(dataplane: &Dataplane, backend_of: impl Fn(&[&'static str; 2]) -> &'static str, flags: u16) {
    serve(dataplane, backend_of, flags);
    for (key, vip) in dataplane.balance().vips.read_all().expect("vips") {
        let key = ServiceKey { protocol: 17, ..key };
        dataplane.tables().services.put(&key, &Service::default()).expect("service");
        dataplane.balance().vips.put(&key, &vip).expect("vip");
    }
}

/// The way to the other node takes 1,400 bytes, a pod's interface 1,500.
#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter served"]
fn what_is_too_large_for_the_way_is_cut_or_its_sender_told() {
    const LENGTH: usize = 1_400;
    on_a_node(|net| {
        let mut dataplane = Dataplane::load(&Options::default()).expect("load");
        write_pods(&dataplane);
        serve_datagrams(&dataplane, |[_, there]| there, Backend::REMOTE);
        attach_pods(&mut dataplane);
        let other = connect_node(&mut dataplane, &net);
        answer_at(&other, TARGET_PORT);
        echo_at(&other, TARGET_PORT);
        run("ip", "route replace 10.2.0.0/24 via 192.168.77.2 mtu lock 1400");
        run("ip", "-6 route replace fd00:2::/64 via fd00:77::2 mtu lock 1400");
        let may_be_cut = |yes: &'static str| {
            net.pod_1.run(move || fs::write("/proc/sys/net/ipv4/ip_no_pmtu_disc", yes).expect("sysctl"));
        };
        may_be_cut("1");
        assert_eq!(echo(&net.pod_1, socket(SERVICES[0].0, PORT), LENGTH).map_err(|error| error.kind()), Ok(()));
        may_be_cut("0");
        for (service, _) in SERVICES {
            let known = move || run("ip", &format!("route get {service}"));
            assert!(!net.pod_1.run(known).contains("mtu"));
            talk(&net.pod_1, socket(service, PORT)).unwrap_or_else(|error| panic!("{service}: {error}"));
            let route = net.pod_1.run(known);
            assert!(route.contains("mtu 1400"), "{service}: {route}");
        }
        assert_eq!(nat_flows(&dataplane).len(), 6, "two a connection");
    });
}

#[test]
#[ignore = "needs root and the BPF object: cargo xtask test --tier 2 --filter served"]
fn a_client_is_told_that_nobody_listens() {
    for remote in [0, Backend::REMOTE] {
        on_a_node(move |net| {
            let mut dataplane = Dataplane::load(&Options::default()).expect("load");
            write_pods(&dataplane);
            let _other = connect_node(&mut dataplane, &net);
            attach_pods(&mut dataplane);
            serve_datagrams(&dataplane, |[here, there]| if remote == 0 { here } else { there }, remote);
            for (service, _) in SERVICES {
                let refused = echo(&net.pod_1, socket(service, PORT), 5).map_err(|error| error.kind());
                assert_eq!(refused, Err(std::io::ErrorKind::ConnectionRefused), "{service}, {remote}");
            }
        });
    }
}

/// Sends datagrams back where they came from.
fn echo_at(pod: &Pod, port: u16) {
    pod.run(move || {
        for any in ["::", "0.0.0.0"] {
            let any: IpAddr = any.parse().expect("address");
            let Ok(server) = UdpSocket::bind((any, port)) else { continue };
            thread::spawn(move || {
                let mut bytes = vec![0; 65_536];
                while let Ok((length, from)) = server.recv_from(&mut bytes) {
                    let _ = server.send_to(&bytes[..length], from);
                }
            });
        }
    });
}

/// From one and the same port.
fn echo(pod: &Pod, to: SocketAddr, length: usize) -> std::io::Result<()> {
    pod.run(move || {
        let any = if to.is_ipv4() { "0.0.0.0:4000" } else { "[::]:4000" };
        let client = UdpSocket::bind(any)?;
        client.connect(to)?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        client.send(&bytes(7)[..length])?;
        let mut answer = vec![0; 65_536];
        let got = client.recv(&mut answer)?;
        assert!(answer[..got] == bytes(7)[..length], "{got} of {length} bytes");
        Ok(())
    })
}
