//! `equipoise extract`.

use std::{fs, path::Path};

use equipoise::{
    dataset::FeatureSet,
    heads::{HeadFile, Scores},
};

use super::{equipoise, fails, icon, icons30, is_wrong_usage, path, prints, prints_json, text};

/// Two classes with three images, and something that is none.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (from, to) in [("bell/00.png", "bell/b.png"), ("bell/01.png", "bell/a.PNG"), ("car/00.png", "car/c.png")] {
        let to = folder.path().join("images").join(to);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        fs::copy(icon(from), to).expect("a copy");
    }
    fs::write(folder.path().join("images/bell/notes.txt"), "no image").expect("a file");
    folder
}

fn class(label: &str) -> u32 {
    let labels = fs::read_to_string(icons30().join("labels.txt")).expect("it ships");
    u32::try_from(labels.lines().position(|line| line == label).expect("a label")).expect("a class")
}

fn read(file: &str) -> FeatureSet {
    FeatureSet::read(Path::new(file), Some(30), 1 << 30).expect("a feature set")
}

#[test]
fn features_and_head_give_the_logits_that_classify_gives() {
    let folder = images();
    let (input, output) = (path(&folder.path().join("images")), path(&folder.path().join("features.npz")));
    let summary = prints(&["extract", &input, "-o", &output]);
    assert_eq!(summary, format!("{output}: 3 rows of 96 features, images of 2 of 30 classes\n"));
    let set = read(&output);
    assert_eq!(set.labels(), [class("bell"), class("bell"), class("car")]);

    let head =
        HeadFile::parse(&fs::read(icons30().join("heads/joint.safetensors")).expect("it ships")).expect("a head").head;
    let (raw, _) = head.weights().raw_scores(set.features());
    let files = ["bell/a.PNG", "bell/b.png", "car/c.png"].map(|file| format!("{input}/{file}"));
    let answer =
        prints_json(&["classify", &files[0], &files[1], &files[2], "--json", "--head", "joint", "--top-k", "30"]);
    let mut logits = Vec::new();
    for (index, raw) in raw.rows().into_iter().enumerate() {
        let raw = raw.to_vec();
        head.scoring(head.initial_settings()).logits(Scores { raw: &raw, squared_norm: 0.0 }, &mut logits);
        let predictions = answer["images"][index]["results"][0]["predictions"].as_array().expect("a list").clone();
        assert_eq!(predictions.len(), 30);
        for prediction in predictions {
            let class = usize::try_from(prediction["class"].as_u64().expect("a class")).expect("a class");
            let logit = prediction["logit"].as_f64().expect("a logit");
            assert!(
                (logits[class] - logit).abs() < 1e-4,
                "image {index}, class {class}: {logit} and {}",
                logits[class]
            );
        }
    }
}

#[test]
fn the_same_files_give_the_same_bytes_however_they_are_named() {
    let folder = images();
    let (first, second) = (folder.path().join("1.npz"), folder.path().join("2.npz"));
    let input = |name: &str| path(&folder.path().join("images").join(name));
    prints(&["extract", &input(""), "-o", &path(&first)]);
    prints(&["extract", &input("bell"), &input("car/c.png"), "-o", &path(&second), "--sessions", "1"]);
    assert_eq!(fs::read(first).expect("written"), fs::read(second).expect("written"));
}

#[test]
fn a_folder_may_be_named_by_the_index_of_its_class() {
    let folder = images();
    fs::rename(folder.path().join("images/car"), folder.path().join("images/29")).expect("renamed");
    let output = path(&folder.path().join("f.npz"));
    prints(&["extract", &path(&folder.path().join("images")), "-o", &output]);
    // In the order of the paths.
    assert_eq!(read(&output).labels(), [29, class("bell"), class("bell")]);
}

#[test]
fn an_unknown_folder_is_an_error_unless_no_labels_are_wanted() {
    let folder = images();
    fs::rename(folder.path().join("images/car"), folder.path().join("images/cow")).expect("renamed");
    let (input, output) = (path(&folder.path().join("images")), path(&folder.path().join("f.npz")));
    fails(&["extract", &input, "-o", &output], &["images/cow", "neither a label", "c.png", "--no-labels"]);
    fails(&["extract", &format!("{input}/cow/c.png"), "-o", &output], &["images/cow", "neither a label"]);
    assert!(!Path::new(&output).exists());
    assert!(prints(&["extract", &input, "-o", &output, "--no-labels"]).ends_with("3 rows of 96 features, no labels\n"));
    let error = FeatureSet::read(Path::new(&output), None, 1 << 30).expect_err("there are no labels");
    assert_eq!(error.to_string(), "`labels` is missing");
}

#[test]
fn an_unreadable_image_stops_it_or_is_skipped_and_named() {
    let folder = images();
    fs::write(folder.path().join("images/bell/aa.png"), "no image").expect("a file");
    let (input, output) = (path(&folder.path().join("images")), path(&folder.path().join("f.npz")));
    fails(&["extract", &input, "-o", &output], &["bell/aa.png: unknown image format"]);
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing but the images");

    let skipping =
        equipoise(&["extract", &input, "-o", &output, "--skip-unreadable"]).output().expect("the binary runs");
    let stderr = text(&skipping.stderr);
    assert!(skipping.status.success(), "{stderr}");
    for part in ["bell/aa.png: unknown image format", "skipped 1 of 4 images", "left out 1 file", "notes.txt"] {
        assert!(stderr.contains(part), "no `{part}` in: {stderr}");
    }
    assert_eq!(read(&output).labels(), [class("bell"), class("bell"), class("car")]);
    let bad = format!("{input}/bell/aa.png");
    fails(
        &["extract", &bad, "--no-labels", "-o", &path(&folder.path().join("g.npz"))],
        &["aa.png: unknown image format"],
    );
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_an_unreadable_image_or_the_folder_of_a_class() {
    let folder = images();
    let images = folder.path().join("images");
    std::os::unix::fs::symlink("nothing", images.join("bell/c.png")).expect("a link");
    let (input, output) = (path(&images), path(&folder.path().join("f.npz")));
    fails(&["extract", &input, "-o", &output], &["bell/c.png: No such file"]);
    std::os::unix::fs::symlink("nothing", images.join("clock")).expect("a link");
    fails(&["extract", &input, "-o", &output], &["images/clock: No such file"]);
    let skipping =
        equipoise(&["extract", &input, "-o", &output, "--skip-unreadable"]).output().expect("the binary runs");
    let stderr = text(&skipping.stderr);
    assert!(skipping.status.success() && stderr.contains("skipped 1 of 4 images"), "{stderr}");
    assert!(stderr.contains("images/clock: No such file"), "{stderr}");
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_the_work() {
    let folder = images();
    let input = path(&folder.path().join("images"));
    fails(&["extract", &input, "-o", &input], &["it is a folder"]);
    fails(&["extract", &input, "-o", &format!("{input}/absent/f.npz")], &["there is no folder"]);
    fails(&["extract", "absent", "-o", &format!("{input}/f.npz")], &["absent: No such file"]);
}

#[test]
fn standard_output_gets_the_file_and_nothing_else_and_a_dash_is_no_file() {
    let folder = images();
    let (input, output) = (path(&folder.path().join("images")), path(&folder.path().join("f.npz")));
    prints(&["extract", &input, "-o", &output]);
    let piped = equipoise(&["extract", &input, "-o", "/dev/stdout"]).output().expect("the binary runs");
    assert!(piped.status.success() && text(&piped.stderr).contains("3 rows of 96 features"), "{}", text(&piped.stderr));
    assert!(piped.stdout == fs::read(&output).expect("written"), "{} bytes", piped.stdout.len());
    is_wrong_usage(&["extract", &input, "-o", "-"], "/dev/stdout is standard output");
    assert!(!Path::new("-").exists());
}
