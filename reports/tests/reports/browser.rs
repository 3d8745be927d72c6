//! The page in a real browser: its script runs under its own content security policy, nothing is logged, nothing is
//! fetched, and something is to be seen.
//!
//! Needs Debian's chromium. `MESHDIFF_SKIP_BROWSER=1` leaves these tests out, and says so.

use crate::support::{bookinfo, empty, forty, hostile, limited, meta, simulate};
use meshdiff_analyzer::Report;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHROMIUM: &str = "/usr/bin/chromium";
/// For one start of the browser. `timeout` ends its whole process group.
const SECONDS: &str = "90";

struct Browser {
    folder: tempfile::TempDir,
    page: PathBuf,
}

/// The browser with this report's page; `None` if it shall be left out.
fn browser(report: &Report) -> Option<Browser> {
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
