//! Recordings of the original: exit statuses and messages of command lines, flags of its early documents.

use super::*;

const PROXY: &str = "--run-router=false --run-firewall=false";
const ROUTER: &str = "--run-firewall=false --run-service-proxy=false";
const FIREWALL: &str = "--run-router=false --run-service-proxy=false";

#[test]
fn wrong_lines() {
    for (line, code, message) in [
        ("positional", 1, "unrecognized positional argument(s): [positional]"),
        ("--run-router=false extra words", 1, "unrecognized positional argument(s): [extra words]"),
        ("--no-such-flag", 2, "unknown flag: --no-such-flag"),
        ("-x", 2, "unknown shorthand flag: 'x' in -x"),
        (
            "--run-router=maybe",
            2,
            "invalid argument \"maybe\" for \"--run-router\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
        (
            "-v=abc --version",
            1,
            "failed to set log level to \"abc\": strconv.ParseInt: parsing \"abc\": invalid syntax",
        ),
        (
            "-v=abc --cleanup-config",
            1,
            "failed to set log level to \"abc\": strconv.ParseInt: parsing \"abc\": invalid syntax",
        ),
        // Not recorded, from pflag's and Go's sources.
        (
            "--run-router=",
            2,
            "invalid argument \"\" for \"--run-router\" flag: strconv.ParseBool: parsing \"\": invalid syntax",
        ),
        ("---x=1", 2, "bad flag syntax: ---x=1"),
        ("--=1", 2, "bad flag syntax: --=1"),
        ("-Vxy", 2, "unknown shorthand flag: 'x' in -xy"),
        ("--kubeconfig", 2, "flag needs an argument: --kubeconfig"),
        ("-hv", 2, "flag needs an argument: 'v' in -v"),
        (
            "--ipvs-sync-period=5",
            2,
            "invalid argument \"5\" for \"--ipvs-sync-period\" flag: time: missing unit in duration \"5\"",
        ),
        (
            "--health-port=70000",
            2,
            "invalid argument \"70000\" for \"--health-port\" flag: strconv.ParseUint: parsing \"70000\": value out of range",
        ),
        (
            "--peer-router-ips=192.0.2",
            2,
            "invalid argument \"192.0.2\" for \"--peer-router-ips\" flag: invalid string being converted to IP address: 192.0.2",
        ),
        (
            "-V=x",
            2,
            "invalid argument \"x\" for \"-V, --version\" flag: strconv.ParseBool: parsing \"x\": invalid syntax",
        ),
        // The first mistake from the left is named.
        (
            "--bgp-port=x --no-such-flag",
            2,
            "invalid argument \"x\" for \"--bgp-port\" flag: strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
        ("--no-such-flag --bgp-port=x", 2, "unknown flag: --no-such-flag"),
    ] {
        assert_eq!(refused(line), (code, message.to_owned()), "{line}");
    }
}

#[test]
fn usage_errors_are_short_and_helpful() {
    let text = read("--masqerade-all").unwrap_err().to_string();
    assert!(text.starts_with("Usage of kube-router:\n"), "{text}");
    assert!(text.contains("Did you mean --masquerade-all?"), "{text}");
    assert!(text.contains("'kube-router --help'"), "{text}");
    assert!(text.ends_with("\nunknown flag: --masqerade-all"), "{text}");
    assert!(text.lines().count() < 12, "{text}");
    // A password never gets into a message.
    assert!(!read("--peer-router-passwords=hunter\"2").unwrap_err().to_string().contains("hunter"));
}

#[test]
fn no_api_configuration() {
    for line in [
        format!("{PROXY} --run-service-proxy=false"),
        format!("{PROXY} --run-service-proxy=false --run-loadbalancer"),
        format!("{PROXY} --run-service-proxy=true"),
    ] {
        let error = read_in(&line, &env(&[]), &facts()).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(
            error.to_string().ends_with(
                "\nfailed to parse kube-router config: unable to initialize inclusterconfig: unable to load in-cluster \
                 configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
            ),
            "{error}"
        );
    }
    for source in ["--kubeconfig=/k", "--master=http://127.0.0.1:1", "--manifests=/m"] {
        read_in(&format!("{PROXY} {source}"), &env(&[]), &facts()).unwrap();
    }
}

#[test]
fn root_only() {
    let user = Facts { uid: 65534, ..facts() };
    for line in ["--master=http://127.0.0.1:1", "--cleanup-config", "stray words"] {
        let error = read_in(line, &in_cluster(), &user).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().starts_with("kube-router needs to be run with privileges to"), "{error}");
    }
    for line in ["--version", "--help", "-h", "-V stray words", "plan --manifests=/m", "replay f", "dump services"] {
        read_in(line, &env(&[]), &user).unwrap();
    }
}

/// What the original refuses at start, with the controllers that were on. Its `''` for an unknown encapsulation and
/// its panics became real messages.
#[test]
fn refused_values() {
    let validator = "failed to run kube-router: failed to create service IP validator: ";
    let routing = "failed to run kube-router: failed to create network routing controller: ";
    let policy = "failed to run kube-router: failed to create network policy controller: ";
    let plain = "failed to run kube-router: ";
    for (switches, flags, prefix, message) in [
        (
            ROUTER,
            "--overlay-encap=vxlan",
            routing,
            "unknown --overlay-encap option 'vxlan' selected, unable to continue",
        ),
        (ROUTER, "--overlay-encap-port=80", routing, "--overlay-encap-port must be 1024 to 65535, got 80"),
        (
            ROUTER,
            "--bgp-holdtime=1s",
            routing,
            "this is an incorrect BGP holdtime range, holdtime must be in the range 3s to 18h12m16s",
        ),
        (
            ROUTER,
            "--bgp-holdtime=65537s",
            routing,
            "this is an incorrect BGP holdtime range, holdtime must be in the range 3s to 18h12m16s",
        ),
        (
            ROUTER,
            "--bgp-graceful-restart --bgp-graceful-restart-time=5000s",
            plain,
            "BGPGracefulRestartTime should be less than 4095 seconds",
        ),
        (
            ROUTER,
            "--bgp-graceful-restart --bgp-graceful-restart-deferral-time=19h",
            plain,
            "BGPGracefulRestartDeferralTime should be less than 18 hours",
        ),
        (ROUTER, "--cluster-asn=1", routing, "invalid ASN number for cluster ASN"),
        (
            ROUTER,
            "--peer-router-ips=192.168.77.100",
            routing,
            "invalid peer router config, the number of IPs and ASN numbers must be equal",
        ),
        (
            ROUTER,
            "--peer-router-ips=192.168.77.100 --peer-router-asns=23456",
            routing,
            "reserved ASN number \"23456\" for global BGP peer",
        ),
        (
            ROUTER,
            "--peer-router-ips=192.168.77.100 --peer-router-asns=65001 --peer-router-passwords=%%",
            routing,
            "failed to parse CLI Peer Passwords flag: could not parse value as a base64 encoded string",
        ),
        (ROUTER, "--router-id=bogus", routing, "invalid router-id format: bogus"),
        (ROUTER, "--routes-sync-period=0", plain, "--routes-sync-period must be greater than 0, got 0s"),
        (
            ROUTER,
            "--service-cluster-ip-range=nope",
            validator,
            "failed to parse --service-cluster-ip-range parameter: 'nope': invalid CIDR address: nope",
        ),
        (
            PROXY,
            "--service-cluster-ip-range=nope",
            validator,
            "failed to parse --service-cluster-ip-range parameter: 'nope': invalid CIDR address: nope",
        ),
        (
            PROXY,
            "--service-cluster-ip-range=fd00::/112",
            validator,
            "IPv6 CIDR fd00::/112 specified in --service-cluster-ip-range while IPv6 is disabled",
        ),
        (
            PROXY,
            "--service-external-ip-range=nope",
            validator,
            "failed to parse --service-external-ip-range parameter: 'nope': invalid CIDR address: nope",
        ),
        (
            PROXY,
            "--loadbalancer-ip-range=nope",
            validator,
            "failed to parse --loadbalancer-ip-range parameter: 'nope': invalid CIDR address: nope",
        ),
        (
            PROXY,
            "--excluded-cidrs=nope",
            "failed to run kube-router: failed to create network services controller: ",
            "failed to parse --excluded-cidrs parameter: 'nope': invalid CIDR address: nope",
        ),
        (PROXY, "--ipvs-sync-period=0", plain, "--ipvs-sync-period must be greater than 0, got 0s"),
        (PROXY, "--ipvs-sync-period=-1s", plain, "--ipvs-sync-period must be greater than 0, got -1s"),
        (
            PROXY,
            "--ipvs-graceful-termination --ipvs-graceful-period=0",
            plain,
            "--ipvs-graceful-period must be greater than 0, got 0s",
        ),
        (PROXY, "--cache-sync-timeout=0", plain, "--cache-sync-timeout must be greater than 0, got 0s"),
        (PROXY, "--service-tcp-timeout=-5s", plain, "--service-tcp-timeout must not be negative, got -5s"),
        (PROXY, "--service-udp-timeout=1500ms", plain, "--service-udp-timeout counts whole seconds, got 1.5s"),
        (
            PROXY,
            "--enable-ipv4=false",
            validator,
            "IPv4 CIDR 10.96.0.0/12 specified in --service-cluster-ip-range while IPv4 is disabled",
        ),
        (
            PROXY,
            "--enable-ipv4=false --service-cluster-ip-range=fd00::/112",
            validator,
            "IPv6 CIDR fd00::/112 specified in --service-cluster-ip-range while IPv6 is disabled",
        ),
        (
            PROXY,
            "--enable-ipv4=false --service-cluster-ip-range=",
            plain,
            "--enable-ipv4 and --enable-ipv6 are both false: at least one is needed",
        ),
        (PROXY, "--health-addr=here", plain, "--health-addr must be an IP address or empty, got 'here'"),
        (PROXY, "--metrics-port=20244", plain, "--health-port and --metrics-port are both 20244"),
        (
            PROXY,
            "--metrics-port=80 --metrics-path=metrics",
            plain,
            "--metrics-path must start with '/' and hold only letters, digits and '/-._~', got 'metrics'",
        ),
        (
            PROXY,
            "--manifests=/m --master=http://x",
            plain,
            "--manifests takes the place of an API server: leave out --kubeconfig and --master",
        ),
        (PROXY, "--socket=", plain, "--socket must not be empty"),
        (
            FIREWALL,
            "--service-node-port-range=1",
            policy,
            "failed to parse node port range given: '1' please see specification in help text",
        ),
        (
            FIREWALL,
            "--service-node-port-range=40000-30000",
            policy,
            "port 1 is greater than or equal to port 2 in range given: '40000-30000'",
        ),
        (
            FIREWALL,
            "--service-cluster-ip-range=10.96.0.0/12,10.112.0.0/16,fd00::/112",
            validator,
            "IPv6 CIDR fd00::/112 specified in --service-cluster-ip-range while IPv6 is disabled",
        ),
        (
            FIREWALL,
            "--service-cluster-ip-range=10.96.0.0/12,10.112.0.0/16,10.128.0.0/16",
            policy,
            "--service-cluster-ip-range takes one or two CIDRs, got 3",
        ),
        (FIREWALL, "--iptables-sync-period=0", plain, "--iptables-sync-period must be greater than 0, got 0s"),
    ] {
        assert_eq!(refused(&format!("{switches} {flags}")), (1, format!("{prefix}{message}")), "{switches} {flags}");
    }
}

/// Recorded as running: flags of a function that is switched off are not judged.
#[test]
fn not_judged_when_off() {
    for flags in [
        "--service-node-port-range=1",
        "--metrics-port=65535",
        "--bgp-holdtime=1s",
        "--bgp-graceful-restart-time=5000s",
        "--iptables-sync-period=0",
        "--routes-sync-period=0",
        "--bfd-port=0",
        "--cluster-asn=1",
    ] {
        run(&format!("{PROXY} {flags}"));
    }
}

#[test]
fn everything_off() {
    let off = format!("{PROXY} --run-service-proxy=false");
    let error = read(&off).unwrap_err();
    assert_eq!((error.exit_code(), error.clone()), (0, CliError::Nothing));
    for flag in ["--run-router", "--run-firewall", "--run-service-proxy"] {
        assert!(error.to_string().contains(flag));
    }
}

/// Every flag of the five early documents, with the value used there.
#[test]
fn flags_of_old_documents() {
    for flag in [
        "--advertise-cluster-ip",
        "--advertise-external-ip",
        "--cleanup-config",
        "--cluster-asn=64512",
        "--cluster-cidr=10.1.0.0/16",
        "--config-sync-period=1m",
        "--enable-overlay",
        "--enable-pod-egress",
        "--hairpin-mode",
        "--hostname-override=x",
        "--iptables-sync-period=1m",
        "--ipvs-sync-period=1m",
        "--kubeconfig=/k",
        "--masquerade-all",
        "--master=http://192.168.1.99:8080/",
        "--nodeport-bindon-all-ip",
        "--nodes-full-mesh",
        "--peer-router-asns=65000",
        "--peer-router-ips=192.168.1.1",
        "--peer-router-passwords=c2VjcmV0",
        "--routes-sync-period=1m",
        "--run-firewall",
        "--run-router",
        "--run-service-proxy",
        "--master=http://192.168.1.99:8080/ --run-service-proxy=true --run-firewall=false --run-router=false",
    ] {
        let parsed = read(&format!("{flag} --version")).unwrap_or_else(|e| panic!("{flag}: {e}"));
        assert!(matches!(parsed.command, Command::Version(_)));
    }
}
