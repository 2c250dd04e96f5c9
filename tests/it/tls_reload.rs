//! Certificates that change while the proxy runs: by signal, by change, under load.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use standin::Options;

use crate::support::{Authority, Front, Http, Pki, SOON, in_parallel, wait_until};

fn front(settings: &[(&'static str, String)]) -> Front {
    let pairs = settings.iter().map(|(name, value)| (*name, value.as_str()));
    let pairs: Vec<(&str, &str)> = pairs.collect();
    Front::with(Options::default(), &pairs)
}

/// The certificate a new connection is shown.
fn shown(front: &Front, config: &Arc<ClientConfig>) -> CertificateDer<'static> {
    let client = Http::connect_tls(front.address(), config).expect("a handshake");
    let chain = client.tls().peer_certificates().expect("a certificate");
    chain[0].clone().into_owned()
}

/// Lines of the log that contain `text`.
fn lines(front: &Front, text: &str) -> usize {
    let log = front.proxy.log();
    log.lines().filter(|line| line.contains(text)).count()
}

fn wait_for_lines(front: &Front, text: &str, count: usize) {
    wait_until(text, SOON, || lines(front, text) >= count);
}

#[test]
fn sighup_reads_the_certificate_again() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let config = pki.client();
    let first = shown(&front, &config);
    let mut kept = Http::connect_tls(front.address(), &config).unwrap();
    let second = pki.renew();
    assert_ne!(first, second);
    front.proxy.signal("HUP");
    wait_for_lines(&front, "reason=SIGHUP", 1);
    assert_eq!(shown(&front, &config), second);
    // Connections go on as they began.
    assert_eq!(kept.get("/healthz").status, 200);
}

#[test]
fn a_changed_certificate_is_noticed() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let config = pki.client();
    for _ in 0..2 {
        let next = pki.renew();
        wait_until("the new certificate is shown", SOON, || {
            shown(&front, &config) == next
        });
    }
    assert_eq!(lines(&front, "reload refused"), 0);
}

/// How kubelet updates a volume: tls.crt → ..data/tls.crt, ..data → a directory of its own.
#[test]
fn a_changed_kubernetes_secret_is_noticed() {
    let pki = Pki::new();
    for name in ["tls.crt", "tls.key"] {
        let folder = pki.path("..1");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::rename(pki.path(name), folder.join(name)).unwrap();
        symlink(format!("..data/{name}"), pki.path(name)).unwrap();
    }
    symlink("..1", pki.path("..data")).unwrap();
    let front = front(&pki.settings());
    let config = pki.client();
    let first = shown(&front, &config);
    let next = pki.authority.sign("127.0.0.1", 2090);
    std::fs::create_dir(pki.path("..2")).unwrap();
    pki.write("..2/tls.crt", &next.certificate.pem());
    pki.write("..2/tls.key", &next.key.serialize_pem());
    symlink("..2", pki.path("..data_tmp")).unwrap();
    std::fs::rename(pki.path("..data_tmp"), pki.path("..data")).unwrap();
    wait_until("the new certificate is shown", SOON, || {
        shown(&front, &config) == next.certificate()
    });
    assert_ne!(first, next.certificate());
}

#[test]
fn a_bad_pair_is_refused_and_the_old_one_stays() {
    let pki = Pki::new();
    let front = front(&pki.settings());
    let config = pki.client();
    let first = shown(&front, &config);
    let good = std::fs::read_to_string(pki.path("tls.key")).unwrap();
    let path = pki.write(
        "tls.key",
        &Authority::new().sign("x", 2090).key.serialize_pem(),
    );
    // By change, once, and again when asked to.
    wait_for_lines(&front, "ERROR reload refused", 1);
    let line = front.proxy.wait_for_log("ERROR reload refused");
    assert!(
        line.contains(&format!("SSL_KEY={path}: not the key of")),
        "{line}"
    );
    assert_eq!(shown(&front, &config), first);
    std::fs::remove_file(pki.path("tls.crt")).unwrap();
    front.proxy.signal("HUP");
    let line = front.proxy.wait_for_log("cannot be read by user");
    assert!(line.contains("SSL_CERTIFICATE="), "{line}");
    assert_eq!(shown(&front, &config), first);
    // What is mended is taken, without being asked to.
    pki.write("tls.key", &good);
    let next = pki.renew();
    wait_until("the new certificate is shown", SOON, || {
        shown(&front, &config) == next
    });
}

#[test]
fn clients_of_an_authority_that_is_gone_are_refused() {
    let pki = Pki::new();
    let front = front(&pki.settings_with_clients());
    let client = pki.authority.sign("node.example", 2090);
    let config = pki
        .authority
        .client(&[&rustls::version::TLS13], Some(&client));
    for _ in 0..2 {
        let mut http = Http::connect_tls(front.address(), &config).unwrap();
        assert_eq!(http.get("/v2/").status, 200);
    }
    pki.write("ca.crt", &Authority::new().pem());
    front.proxy.signal("HUP");
    wait_for_lines(&front, "reason=SIGHUP", 1);
    // Its ticket is of no use to it either.
    let refused = Http::connect_tls(front.address(), &config)
        .and_then(|mut http| http.try_request("GET", "/v2/", &[], b""));
    assert!(refused.is_err());
    front.proxy.wait_for_log("client certificate refused");
}

#[test]
fn a_rolling_change_under_load_loses_no_request() {
    const CLIENTS: usize = 4;
    const SWAPS: usize = 5;
    const SIZE: u64 = 300_000;
    let pki = Pki::new();
    let front = front(&pki.settings());
    let digest = front.standin.add_blob_of("team/app", SIZE, 9);
    let target = format!("/v2/team/app/blobs/{digest}");
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    in_parallel(CLIENTS + 1, |number| {
        if number == CLIENTS {
            for swap in 1..=SWAPS {
                pki.renew();
                front.proxy.signal("HUP");
                wait_for_lines(&front, "reason=SIGHUP", swap);
                let before = answered.load(Ordering::SeqCst);
                wait_until("requests go on", SOON, || {
                    answered.load(Ordering::SeqCst) > before + 40
                });
            }
            done.store(true, Ordering::SeqCst);
            return;
        }
        let config = pki.client();
        while !done.load(Ordering::SeqCst) {
            // Connections old and new, with and without a session to resume.
            let mut client = Http::connect_tls(front.address(), &config).expect("a handshake");
            for _ in 0..3 {
                let health = client.get("/healthz");
                assert_eq!((health.status, health.complete), (200, true));
                let blob = client.get(&target);
                assert_eq!((blob.status, blob.digest.as_str()), (200, digest.as_str()));
                answered.fetch_add(2, Ordering::SeqCst);
            }
        }
    });
    let answered = answered.load(Ordering::SeqCst);
    assert!(answered >= 40 * SWAPS, "{answered}");
    assert_eq!(lines(&front, "reload refused"), 0);
    assert_eq!(lines(&front, "TLS handshake failed"), 0);
}
