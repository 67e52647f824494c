//! Tables that somebody else made, and orders that do not fit the table.

use std::collections::{BTreeMap, BTreeSet};

use kube_router::{apply::IpvsPlane, desired::Scheduler, objects::Protocol, plan::IpvsOp};

use crate::support::*;

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
fn what_others_made_is_seen_and_can_be_mended() {
    in_namespace(|mut ipvs| {
        // The Go kube-router's IPv4 persistence mask with and without persistence, one-packet scheduling, an unknown
        // scheduler, a mark for each family, a tunnel, a connection limit.
        restore(
            "-A -t 10.96.0.1:80 -s rr -p 10800 -M 32.0.0.0\n-A -u 10.96.0.2:53 -s rr -o\n-A -t 10.96.0.3:80 -s wlc\n\
             -A -f 16051 -s rr\n-A -f 7071 -6 -s rr\n-A -t 10.96.0.4:80 -s rr -p 60\n\
             -A -t 10.96.0.5:80 -s rr -M 32.0.0.0\n\
             -a -t 10.96.0.4:80 -r 10.2.0.1:80 -i -w 1\n-a -t 10.96.0.4:80 -r 10.2.0.2:80 -m -w 1 -x 9 -y 5\n",
        );
        let observed = ipvs.observe().unwrap();
        assert_eq!(observed.marks, BTreeSet::from([(16051, false), (7071, true)]));
        let odd = ["10.96.0.1:80", "10.96.0.3:80", "10.96.0.5:80"].map(|text| key(Protocol::Tcp, text));
        let odd = [odd[0], odd[1], odd[2], key(Protocol::Udp, "10.96.0.2:53")];
        for key in odd {
            assert_eq!(observed.servers[&key].scheduler, Scheduler::Other, "{key}");
        }
        let last = key(Protocol::Tcp, "10.96.0.4:80");
        assert_eq!(observed.servers[&last].persistence_s, Some(60));
        assert!(observed.servers[&last].destinations.values().eq([&u32::MAX; 2]));

        let mut ops: Vec<_> =
            odd.map(|key| IpvsOp::EditServer { key, server: server(Scheduler::Rr, 0, Some(9)) }).into();
        for destination in ["10.2.0.1:80", "10.2.0.2:80"] {
            ops.push(IpvsOp::EditDestination { key: last, destination: destination.parse().unwrap(), weight: 2 });
        }
        ops.push(IpvsOp::DeleteMarkServer { mark: 16051, ipv6: false });
        ops.push(IpvsOp::DeleteMarkServer { mark: 7071, ipv6: true });
        apply(&mut ipvs, &ops);
        let wanted = lines(&[
            "-A -t 10.96.0.1:80 -s rr -p 9",
            "-A -u 10.96.0.2:53 -s rr -p 9",
            "-A -t 10.96.0.3:80 -s rr -p 9",
            "-A -t 10.96.0.4:80 -s rr -p 60",
            "-A -t 10.96.0.5:80 -s rr -p 9",
            "-a -t 10.96.0.4:80 -r 10.2.0.1:80 -m -w 2",
            "-a -t 10.96.0.4:80 -r 10.2.0.2:80 -m -w 2",
        ]);
        assert_eq!(saved(), wanted);
    });
}

#[test]
#[ignore = "needs root and IPVS: cargo xtask test --tier 4"]
fn refusals_name_their_order_and_spare_the_others() {
    in_namespace(|mut ipvs| {
        let here = key(Protocol::Tcp, "10.96.0.1:80");
        let gone = key(Protocol::Tcp, "10.96.0.2:80");
        let destination = "10.2.0.9:80".parse().unwrap();
        let ops = [
            add(here, plain()),
            add(here, plain()),
            add_destination(here, "10.2.0.1:80", 1),
            add_destination(here, "10.2.0.1:80", 1),
            IpvsOp::DeleteDestination { key: here, destination },
            IpvsOp::EditDestination { key: here, destination, weight: 1 },
            add_destination(gone, "10.2.0.1:80", 1),
            IpvsOp::DeleteServer { key: gone },
            IpvsOp::DeleteMarkServer { mark: 5, ipv6: false },
            add(gone, server(Scheduler::Other, 0, None)),
            add_destination(here, "10.2.0.2:80", u32::MAX),
            add_destination(here, "255.255.255.255:80", 1),
            add_destination(here, "10.2.0.2:80", 1),
        ];
        let failures = ipvs.apply(&ops).unwrap();
        use libc::{EEXIST, EINVAL, ENOENT, ERANGE, ESRCH};
        let wanted = [
            (1, EEXIST),
            (3, EEXIST),
            (4, ENOENT),
            (5, ENOENT),
            (6, ESRCH),
            (7, ESRCH),
            (8, ESRCH),
            (9, ENOENT),
            (10, ERANGE),
            (11, EINVAL),
        ];
        assert_eq!(errnos(&failures), wanted);
        let carried_out = [ops[0].clone(), ops[2].clone(), ops[12].clone()];
        assert_eq!(ipvs.observe().unwrap(), expected(&carried_out));
        assert_eq!(ipvs.connections(&gone).unwrap(), BTreeMap::new());
    });
}
