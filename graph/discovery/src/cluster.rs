//! Istio's cluster names.

/// Which way a cluster's traffic goes, seen from its sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterDirection {
    /// From the application to others.
    Outbound,
    /// From others to the application.
    Inbound,
}

/// A cluster's name, taken apart: `outbound|9080|v1|reviews.default.svc.cluster.local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterName<'a> {
    /// Which way.
    pub direction: ClusterDirection,
    /// The service's port; for inbound clusters the application's.
    pub port: u16,
    /// The DestinationRule's subset.
    pub subset: Option<&'a str>,
    /// The service's host name; inbound clusters have none since Istio 1.8.
    pub host: Option<&'a str>,
}

/// A service, by its host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceName<'a> {
    /// Its name in Kubernetes; the whole host name for one that is not of Kubernetes (a ServiceEntry's).
    pub name: &'a str,
    /// Its namespace, for one of Kubernetes.
    pub namespace: Option<&'a str>,
}

impl<'a> ClusterName<'a> {
    /// The service that the cluster stands for.
    #[must_use]
    pub fn service(&self) -> Option<ServiceName<'a>> {
        let host = self.host?;
        let mut parts = host.splitn(4, '.');
        if let (Some(name), Some(namespace), Some("svc")) = (parts.next(), parts.next(), parts.next())
            && !name.is_empty()
            && !namespace.is_empty()
        {
            return Some(ServiceName { name, namespace: Some(namespace) });
        }
        Some(ServiceName { name: host, namespace: None })
    }
}

/// Takes a cluster's name apart (`BuildSubsetKey` in Istio's `pilot/pkg/model`), also in the form that is a valid host name
/// and that serves as SNI (`outbound_.9080_.v1_.reviews.default.svc.cluster.local`). `None` for any other name, such as
/// `PassthroughCluster`.
#[must_use]
pub fn service_of_cluster(name: &str) -> Option<ClusterName<'_>> {
    let separator = if name.contains('|') { "|" } else { "_." };
    let mut parts = name.splitn(4, separator);
    let direction = match parts.next()? {
        "outbound" => ClusterDirection::Outbound,
        "inbound" => ClusterDirection::Inbound,
        _ => return None,
    };
    let port = parts.next()?.parse().ok()?;
    let mut text = || parts.next().map(|part| (!part.is_empty()).then_some(part));
    let (subset, host) = (text()?, text()?);
    Some(ClusterName { direction, port, subset, host })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn istios_names_are_taken_apart() {
        let full = service_of_cluster("outbound|9080|v1|reviews.default.svc.cluster.local").expect("a name");
        assert_eq!((full.direction, full.port, full.subset), (ClusterDirection::Outbound, 9080, Some("v1")));
        assert_eq!(full.service(), Some(ServiceName { name: "reviews", namespace: Some("default") }));
        let sni = service_of_cluster("outbound_.9080_._.reviews.default.svc.cluster.local").expect("a name");
        assert_eq!((sni.port, sni.subset, sni.host), (9080, None, Some("reviews.default.svc.cluster.local")));
        let inbound = service_of_cluster("inbound|9080||").expect("a name");
        assert_eq!((inbound.direction, inbound.host, inbound.service()), (ClusterDirection::Inbound, None, None));
        let external = service_of_cluster("outbound|443||api.example.com").expect("a name");
        assert_eq!(external.service(), Some(ServiceName { name: "api.example.com", namespace: None }));
        for other in [
            "PassthroughCluster",
            "InboundPassthroughCluster",
            "BlackHoleCluster",
            "",
            "outbound",
            "outbound|x||h",
            "outbound|70000||h",
            "outbound|80",
            "sideways|80||h",
            "xds-grpc",
        ] {
            assert_eq!(service_of_cluster(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_survived(name in "(outbound|inbound)?[|_.]{0,2}[0-9]{0,6}[|_.a-zé]{0,40}") {
            if let Some(cluster) = service_of_cluster(&name) {
                prop_assert_eq!(cluster.service().is_some(), cluster.host.is_some());
            }
        }
    }
}
