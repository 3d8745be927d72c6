//! The page in a real browser: its script runs under its own content security policy, nothing is logged, nothing is
//! fetched, and something is to be seen.
//!
//! Needs Debian's chromium. `MESHDIFF_SKIP_BROWSER=1` leaves these tests out, and says so.

use crate::devtools::Page;
use crate::support::{bookinfo, empty, forty, hostile, limited, meta, simulate, without_metrics};
use meshdiff_analyzer::Report;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const CHROMIUM: &str = "/usr/bin/chromium";
/// For one start of the browser. `timeout` ends its whole process group.
const SECONDS: &str = "90";

pub(crate) struct Browser {
    folder: tempfile::TempDir,
    pub(crate) page: PathBuf,
}

/// The browser with this report's page; `None` if it shall be left out.
pub(crate) fn browser(report: &Report) -> Option<Browser> {
    if std::env::var_os("MESHDIFF_SKIP_BROWSER").is_some_and(|v| v == "1") {
        eprintln!("left out: MESHDIFF_SKIP_BROWSER=1, the HTML report was not opened in a browser");
        return None;
    }
    assert!(
        Path::new(CHROMIUM).exists(),
        "{CHROMIUM} is missing: `apt-get install chromium`, or set MESHDIFF_SKIP_BROWSER=1 to leave the browser tests out"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let page = folder.path().join("report.html");
    let mut out = std::fs::File::create(&page).expect("the page's file");
    meshdiff_reports::html::write(report, &meta(), &mut out).expect("the page");
    Some(Browser { folder, page })
}

impl Browser {
    /// Runs once and returns standard output; fails on anything that the page logs.
    fn run(&self, arguments: &[&str], fragment: &str) -> String {
        let profile = tempfile::tempdir_in(self.folder.path()).expect("an empty profile");
        let output = Command::new("timeout")
            .args(["--kill-after=5", SECONDS, CHROMIUM])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--hide-scrollbars",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
            ])
            .args(["--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=2000"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(arguments)
            .arg(format!("file://{}{fragment}", self.page.display()))
            .output()
            .expect("timeout(1) of coreutils");
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "chromium ended with {}: {log}", output.status);
        let said: Vec<_> = log.lines().filter(|l| l.contains("CONSOLE")).collect();
        assert!(said.is_empty(), "the page wrote to the console: {said:#?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn dom(&self, fragment: &str) -> String {
        let dom = self.run(&["--window-size=1280,2000", "--dump-dom"], fragment);
        assert!(dom.contains("data-ready=\"true\""), "the script did not come to its end");
        assert!(!dom.contains("data-error"), "the script failed");
        assert!(dom.contains("data-schema=\"meshdiff.report/v1\""), "the embedded JSON could not be read");
        dom
    }

    /// How many colours a picture of the page has, and how large it is.
    fn colours(&self, size: (u32, u32), more: &[&str]) -> usize {
        let file = self.folder.path().join("page.png");
        let shot = format!("--screenshot={}", file.display());
        let window = format!("--window-size={},{}", size.0, size.1);
        self.run(&[&[shot.as_str(), window.as_str()], more].concat(), "");
        let reader = std::io::BufReader::new(std::fs::File::open(&file).expect("the picture"));
        let mut reader = png::Decoder::new(reader).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut pixels).expect("a picture");
        assert_eq!((info.width, info.height), size);
        let colours: std::collections::HashSet<&[u8]> = pixels.chunks(info.color_type.samples()).collect();
        colours.len()
    }
}

#[test]
fn bookinfo_is_interactive_and_visible() {
    let mut report = simulate(&bookinfo(), 300);
    report.findings = crate::support::findings();
    let Some(browser) = browser(&report) else { return };
    let dom = browser.dom("#hop-3");
    assert!(dom.contains("Of the <b>"), "the verdict");
    assert_eq!(dom.matches("<article class=\"hop").count(), 7);
    assert!(dom.contains("<article class=\"hop current\" id=\"hop-3\""), "the hop that was jumped to is marked");
    assert_eq!(dom.matches("<details class=\"wf\"").count(), 8);
    assert_eq!(dom.matches("class=\"edge ").count(), 7);
    assert!(dom.contains("data-tip="), "titles became tooltips");
    for (size, more) in
        [((1280, 2400), &[][..]), ((480, 2400), &[]), ((1280, 2400), &["--blink-settings=preferredColorScheme=0"])]
    {
        let colours = browser.colours(size, more);
        assert!(colours > 100, "{size:?} {more:?}: a nearly blank page of {colours} colours");
    }
    let pdf = browser.folder.path().join("page.pdf");
    browser.run(&[&format!("--print-to-pdf={}", pdf.display())], "");
    assert!(std::fs::read(&pdf).expect("the print").starts_with(b"%PDF"));
}

#[test]
fn hostile_names_do_nothing() {
    let Some(browser) = browser(&hostile()) else { return };
    let dom = browser.dom("");
    assert!(!dom.contains("<img"));
    assert_eq!(dom.matches("<script").count(), 2);
}

#[test]
fn every_size_of_report_opens() {
    for report in [empty(), limited(), simulate(&forty(), 40)] {
        let Some(browser) = browser(&report) else { return };
        let dom = browser.dom("");
        assert_eq!(dom.matches("<article class=\"hop").count(), report.hops.len());
    }
}

/// The lines whose panels are to be seen.
const OPEN: &str = "Array.from(document.querySelectorAll('article.line')).filter(l => getComputedStyle(l).display !== 'none').map(l => l.id).join()";

/// Half-way along the line whose name begins like this.
fn wire(name: &str) -> String {
    format!(
        "Array.from(document.querySelectorAll('.wire')).find(w => w.getAttribute('aria-label').startsWith('{name}')).querySelector('.hit')"
    )
}

#[test]
fn a_click_on_a_line_shows_what_both_sides_measured() {
    let Some(browser) = browser(&simulate(&bookinfo(), 300)) else { return };
    let mut page = Page::open(CHROMIUM, &browser.page);
    assert_eq!(page.value("getComputedStyle(document.querySelector('.map-connections')).display"), "none");
    let drawn = "Array.from(document.querySelectorAll('.edge path.line')).filter(l => getComputedStyle(l).display !== 'none' && l.getBoundingClientRect().width > 1).length";
    assert_eq!(page.value(drawn), 7, "the lines of the picture of requests");
    page.click("document.querySelector('#map-connections').closest('label')");
    page.wait("getComputedStyle(document.querySelector('.map-connections')).display === 'block'");
    assert_eq!(page.value("getComputedStyle(document.querySelector('.map-requests')).display"), "none");
    assert_eq!(page.text(OPEN), "", "nothing was chosen yet");

    page.click(&wire("loadgen-7d9f8c6b5-x000/envoy → productpage-v1"));
    let id = page.text(OPEN);
    assert!(id.starts_with("line-"), "one panel: {id:?}");
    assert_eq!(page.value("location.hash"), format!("#{id}"));
    let panel = |rest: &str| format!("document.getElementById('{id}'){rest}");
    let words = page.text(&panel(".innerText"));
    for word in [
        "http/1.1 over TLS",
        "9 connections",
        "peer matched",
        "10.96.0.1:9080 (9)",
        "Client side",
        "Server side",
        "Connect",
        "Accept",
        "Round trip",
        "2 here first",
    ] {
        assert!(words.contains(word), "{word}: {words}");
    }
    // Both sides have every metric, with histograms and the windows.
    for side in 0..2 {
        let of = |what: &str| format!(".querySelectorAll('.side')[{side}].querySelectorAll('{what}').length");
        for metric in ["write", "read", "wait", "rtt", "connect", "close", "retransmit", "drop"] {
            assert_eq!(page.value(&panel(&of(&format!(".m-{metric}")))), 1, "{metric}");
        }
        assert_eq!(page.value(&panel(&of(".histogram path[d^=M]"))), 6);
        assert_eq!(page.value(&panel(&of(".spark path[d^=M]"))), 7);
    }
    let write = page.text(&panel(".querySelector('.m-write').innerText"));
    assert!(write.contains("400 calls · 161 KiB") && write.contains("µs"), "{write}");
    // The bars have a size on the screen.
    assert_eq!(page.value(&panel(".querySelector('.histogram path').getBoundingClientRect().height > 10")), true);
    assert_eq!(page.value(&panel(".getBoundingClientRect().bottom <= innerHeight + 1")), true, "it is in view");

    // Another line takes its place; the keyboard goes on to the next one; Escape closes.
    page.click(&wire("details-v1-7d9f8c6b5-x002/envoy → details-v1"));
    let other = page.text(OPEN);
    assert!(other != id && !other.contains(','), "{other}");
    page.key("Tab");
    let next = page.text(OPEN);
    assert!(next != other && !next.contains(','), "focus alone shows the next line: {next}");
    assert_eq!(page.text("document.activeElement.dataset.line"), next);
    page.key("Escape");
    assert_eq!(page.text(OPEN), "");
    assert_eq!(page.value("location.hash"), "");
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}

#[test]
fn lines_open_in_every_report() {
    let mut old = simulate(&bookinfo(), 60);
    without_metrics(&mut old);
    for (report, lines, says) in [
        (old, 18, "recorded before connection metrics were"),
        (hostile(), 18, "script"),
        (simulate(&forty(), 40), 90, "Choose a line"),
    ] {
        let Some(browser) = browser(&report) else { return };
        let mut page = Page::open(CHROMIUM, &browser.page);
        page.click("document.querySelector('#map-connections').closest('label')");
        assert!(page.value("document.querySelectorAll('.wire').length").as_u64() >= Some(lines));
        assert!(page.text("document.querySelector('.map-connections').innerText").contains(says), "{says}");
        for place in ["[0]", "[7]", "[document.querySelectorAll('.wire').length - 1]"] {
            page.click(&format!("document.querySelectorAll('.wire'){place}.querySelector('.hit')"));
            let id = page.text(OPEN);
            assert!(id.starts_with("line-") && !id.contains(','), "{id:?}");
            assert!(page.text(&format!("document.getElementById('{id}').innerText")).contains("Client side"));
            page.key("Escape");
        }
        assert_eq!(page.value("document.querySelectorAll('img').length"), 0);
        assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
    }
}

#[test]
fn a_link_from_the_table_leads_to_its_line() {
    let Some(browser) = browser(&simulate(&bookinfo(), 30)) else { return };
    let dom = browser.dom("#line-3");
    assert!(dom.contains("<article class=\"line on\" id=\"line-3\""), "the line of the address is open");
    assert_eq!(dom.matches("class=\"line on\"").count(), 1);
    let mut page = Page::open(CHROMIUM, &browser.page);
    page.click("document.querySelector('#conn-title')");
    page.click("document.querySelector('table a[href=\"#line-5\"]')");
    page.wait(&format!("{OPEN} === 'line-5'"));
    page.wait(
        "(() => { const r = document.getElementById('line-5').getBoundingClientRect(); \
         return r.height > 100 && r.top >= 0 && r.bottom <= innerHeight + 1; })()",
    );
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}
