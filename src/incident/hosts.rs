//! Hosts are where direct agents may be, as the operator's settings list them.
//!
//! Whoever may write a Hook must not make khook call whatever they like: the metadata service of a cloud,
//! the apiserver, another team's backend. So a host is asked only if it is listed, and an address only if it
//! is one that a listed host can decently have.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use reqwest::Url;

/// The hosts that are allowed; none at first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hosts {
    entries: Vec<Entry>,
    /// Addresses that are never asked, whatever the list says: the apiserver's.
    forbidden: Vec<SocketAddr>,
    /// Addresses of khook's own host, beside the loopback.
    own: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    host: Host,
    /// None allows every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
enum Host {
    Any,
    Name(String),
    /// All names below this one.
    Below(String),
    Net(IpNet),
}

/// How an entry is written.
const FORM: &str = "hosts separated by commas, such as agent.example.com, *.agents.svc, 10.1.0.0/16, \
    127.0.0.1:8080 or *, each with or without a port";

impl Hosts {
    /// All there are, as `*` says it.
    pub fn any() -> Self {
        Self { entries: vec![Entry { host: Host::Any, port: None }], ..Self::default() }
    }
}

impl FromStr for Hosts {
    type Err = String;

    /// Parses a list with commas between its entries; an empty one allows nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(Entry::parse);
        Ok(Self { entries: entries.collect::<Result<_, _>>()?, ..Self::default() })
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{FORM}; {text:?} is none");
        // An IPv6 address has colons of its own: with a port it stands in brackets.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| wrong())?))
            }
            _ => (text, None),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let net = host.parse::<IpNet>().ok().or_else(|| Some(IpNet::from(host.parse::<IpAddr>().ok()?)));
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        let host = match (net, host.strip_prefix("*.")) {
            (Some(net), _) => Host::Net(net),
            (None, Some(name)) if is_name(name) => Host::Below(tidy(name)),
            (None, None) if host == "*" => Host::Any,
            (None, None) if is_name(host) => Host::Name(tidy(host)),
            _ => return Err(wrong()),
        };
        Ok(Self { host, port })
    }

    fn names(&self, name: &str, port: u16) -> bool {
        let same = match &self.host {
            Host::Any => true,
            Host::Name(own) => own == name,
            Host::Below(suffix) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            Host::Net(_) => false,
        };
        same && self.port.is_none_or(|own| own == port)
    }

    fn contains(&self, address: IpAddr, port: u16) -> bool {
        matches!(&self.host, Host::Net(net) if net.contains(&address))
            && self.port.is_none_or(|own| own == port)
    }
}

impl Hosts {
    /// The same list; the apiserver's addresses are never asked, and khook's own only where they are listed.
    pub fn never(self, forbidden: Vec<SocketAddr>, own: Vec<IpAddr>) -> Self {
        Self { forbidden, own, ..self }
    }

    /// Whether no host is allowed: there are no direct agents then.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether an agent may be at this URL, as far as its host tells.
    ///
    /// # Errors
    /// Why not, as the end of a sentence about the URL.
    pub fn allows(&self, url: &Url) -> Result<(), String> {
        if self.is_empty() {
            return Err("is not asked: the operator's settings allow no agents but kagent's \
                        (DIRECT_AGENT_HOSTS is empty)"
                .into());
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err("has no host".into());
        };
        if let Some(address) = literal(host) {
            return self.allows_literal(address, port);
        }
        let name = tidy(host);
        // The apiserver's names in every cluster.
        if name == "kubernetes" || name == "kubernetes.default" || name.starts_with("kubernetes.default.") {
            return Err("is the apiserver's, which is no agent".into());
        }
        match self.entries.iter().any(|entry| entry.names(&name, port)) {
            true => Ok(()),
            false => Err(format!(
                "is at {name}:{port}, which is not among the hosts that the operator's settings allow \
                 (DIRECT_AGENT_HOSTS)"
            )),
        }
    }

    /// Whether an agent may be at this address: the last look before a connection is made.
    ///
    /// # Errors
    /// Why not, as the end of a sentence about the URL.
    pub fn allows_address(&self, address: IpAddr, port: u16) -> Result<(), String> {
        let address = plain(address);
        let shown = SocketAddr::new(address, port);
        if is_nobodys(address)
            || self.forbidden.iter().any(|own| plain(own.ip()) == address && own.port() == port)
        {
            return Err(format!("is at {shown}, where no agent may be"));
        }
        if self.entries.iter().any(|entry| entry.contains(address, port)) {
            return Ok(());
        }
        match address.is_loopback() || self.own.iter().any(|own| plain(*own) == address) {
            true => Err(format!(
                "is at {shown}, khook's own host, which must be among the hosts that the operator's settings \
                 allow (DIRECT_AGENT_HOSTS) by its address"
            )),
            false => Ok(()),
        }
    }

    /// Whether an agent may be at this address that stands in a URL.
    fn allows_literal(&self, address: IpAddr, port: u16) -> Result<(), String> {
        self.allows_address(address, port)?;
        let address = plain(address);
        let any = |entry: &Entry| entry.host == Host::Any && entry.port.is_none_or(|own| own == port);
        match self.entries.iter().any(|entry| entry.contains(address, port) || any(entry)) {
            true => Ok(()),
            false => Err(format!(
                "is at {}, which is not among the hosts that the operator's settings allow (DIRECT_AGENT_HOSTS)",
                SocketAddr::new(address, port)
            )),
        }
    }
}

// Names are written in any case, and with a dot at the end.
fn tidy(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The address that stands in place of a host's name.
pub fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

// An IPv4 address in the clothes of IPv6 is the same host: mapped (::ffff:0:0/96), compatible (::/96, RFC 4291),
// translated (64:ff9b::/96, RFC 6052; 64:ff9b:1::/48, RFC 8215) or tunnelled (2002::/16, RFC 3056).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address.to_canonical() else { return address.to_canonical() };
    let (octets, segments) = (v6.octets(), v6.segments());
    let inner = match segments {
        [0x64, 0xff9b, 0 | 1, ..] => Some(12),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => Some(12),
        [0x2002, ..] => Some(2),
        _ => None,
    };
    match inner.and_then(|at| octets.get(at..at + 4)) {
        Some(&[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).into(),
        _ => v6.into(),
    }
}

// Where no agent is, but things that trust whoever can reach them: link-local addresses, with the metadata
// services of AWS, Azure and Google among them, and the metadata addresses of other clouds.
fn is_nobodys(address: IpAddr) -> bool {
    const METADATA: [IpAddr; 5] = [
        IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
        IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    ];
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    local || address.is_unspecified() || address.is_multicast() || METADATA.contains(&address)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn hosts(list: &str) -> Hosts {
        list.parse::<Hosts>().expect("a list").never(
            vec!["10.96.0.1:443".parse().expect("an address")],
            vec!["10.244.0.7".parse().expect("an address")],
        )
    }

    fn allows(list: &str, url: &str) -> Result<(), String> {
        hosts(list).allows(&Url::parse(url).expect("a URL"))
    }

    #[rstest]
    #[case("agent.example.com", "https://agent.example.com/a2a")]
    #[case("agent.example.com", "http://AGENT.example.com.:8080/")]
    #[case(" agent.example.com:8443 ,x", "https://agent.example.com:8443/")]
    #[case("agent.example.com:443", "https://agent.example.com/")]
    #[case("*.agents.svc", "http://triage.agents.svc:8080/")]
    #[case("*.agents.svc", "http://a.b.agents.svc/")]
    #[case("10.1.0.0/16", "http://10.1.2.3:8080/")]
    #[case("127.0.0.1", "http://127.0.0.1:9000/")]
    #[case("[::1]:9000", "http://[::1]:9000/")]
    #[case("fd00::/8", "http://[fd00::7]/")]
    #[case("*", "https://anything.example.com/")]
    #[case("*:8080", "http://10.0.0.9:8080/")]
    fn what_is_listed_is_allowed(#[case] list: &str, #[case] url: &str) {
        assert_eq!(allows(list, url), Ok(()));
    }

    #[rstest]
    #[case("", "https://agent.example.com/", "DIRECT_AGENT_HOSTS is empty")]
    #[case("agent.example.com", "https://agent.example.org/", "not among the hosts")]
    #[case("agent.example.com", "https://x.agent.example.com/", "not among the hosts")]
    #[case("agent.example.com:8443", "https://agent.example.com/", "not among the hosts")]
    #[case("*.agents.svc", "http://agents.svc/", "not among the hosts")]
    #[case("*.agents.svc", "http://evilagents.svc/", "not among the hosts")]
    #[case("agent.example.com", "http://10.0.0.1/", "not among the hosts")]
    #[case("10.1.0.0/16", "http://10.2.0.1/", "not among the hosts")]
    #[case("*", "http://169.254.169.254/latest/meta-data/", "no agent may be")]
    #[case("169.254.169.254", "http://169.254.169.254/", "no agent may be")]
    #[case("*", "http://[fd00:ec2::254]/", "no agent may be")]
    #[case("*", "http://[::ffff:169.254.169.254]/", "no agent may be")]
    #[case("*", "http://[64:ff9b::a9fe:a9fe]/", "no agent may be")]
    #[case("*", "http://[64:ff9b:1::a9fe:a9fe]/", "no agent may be")]
    #[case("*", "http://[::a9fe:a9fe]/", "no agent may be")]
    #[case("*", "http://[2002:a9fe:a9fe::]/", "no agent may be")]
    #[case("*", "http://[fd20:ce::254]/", "no agent may be")]
    #[case("*", "http://168.63.129.16/", "no agent may be")]
    #[case("*", "http://10.244.0.7:8080/metrics", "khook's own host")]
    #[case("*", "http://[::ffff:10.244.0.7]:8080/", "khook's own host")]
    #[case("*", "http://0.0.0.0:8080/", "no agent may be")]
    #[case("*", "http://2852039166/", "no agent may be")]
    #[case("*", "https://10.96.0.1/", "no agent may be")]
    #[case("*", "https://[::ffff:10.96.0.1]/", "no agent may be")]
    #[case("*", "http://127.0.0.1:8080/", "khook's own host")]
    #[case("*", "http://[::1]:8080/", "khook's own host")]
    #[case("127.0.0.1:9000", "http://127.0.0.1:8080/", "khook's own host")]
    #[case("*", "https://kubernetes.default.svc/", "apiserver")]
    #[case("*", "https://kubernetes/", "apiserver")]
    #[case("*", "https://KUBERNETES.default.svc.cluster.local./", "apiserver")]
    fn everything_else_is_refused(#[case] list: &str, #[case] url: &str, #[case] why: &str) {
        let refusal = allows(list, url).expect_err("refused");
        assert!(refusal.contains(why), "{refusal}");
    }

    #[rstest]
    fn a_wrong_list_is_an_error(
        #[values(
            "a b",
            "https://a/",
            "a:b",
            "a:70000",
            "*.",
            "*a",
            "a.*",
            "10.0.0.0/99",
            "[::1",
            "::1:x",
            "a/b"
        )]
        list: &str,
    ) {
        assert!(list.parse::<Hosts>().is_err(), "{list}");
    }

    #[test]
    fn a_name_may_lead_into_the_cluster_but_not_to_khook_itself() {
        let hosts = hosts("agent.example.com");
        assert_eq!(hosts.allows_address("10.0.0.9".parse().expect("an address"), 80), Ok(()));
        assert!(hosts.allows_address("127.0.0.1".parse().expect("an address"), 80).is_err());
        assert!(hosts.allows_address("10.96.0.1".parse().expect("an address"), 443).is_err());
        assert_eq!(hosts.allows_address("10.96.0.1".parse().expect("an address"), 8443), Ok(()));
    }
}
