//! The bucket's rules in the format that each provider takes, from the same settings that we count with.

use serde_json::{Value, json};

use super::config::{Azure, Gcs, Provider, S3};
use super::lifecycle::{Age, Lifecycle};

/// What is done in rules carries this name, so that it is found again.
const RULE: &str = "croft-lifecycle";

/// The rules of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The provider's JSON.
    pub json: String,
    /// The provider's own command that takes it, with `rules.json` for the file.
    pub command: String,
}

impl Provider<'_> {
    /// The rules for the tier's bucket; `None` for a directory, which has none.
    pub fn rules(self) -> Option<Rules> {
        let (json, command) = match self {
            Self::S3(config) => (s3(config), s3_command(config)),
            Self::Gcs(config) => (gcs(config), gcs_command(config)),
            Self::Azure(config) => (azure(config), azure_command(config)),
            Self::Fs(_) => return None,
        };
        Some(Rules { json: format!("{json:#}\n"), command })
    }
}

fn s3_command(S3 { bucket, .. }: &S3) -> String {
    format!(
        "aws s3api put-bucket-lifecycle-configuration --bucket {bucket} --lifecycle-configuration file://rules.json"
    )
}

fn gcs_command(Gcs { bucket, .. }: &Gcs) -> String {
    format!("gcloud storage buckets update gs://{bucket} --lifecycle-file=rules.json")
}

fn azure_command(Azure { account, .. }: &Azure) -> String {
    format!(
        "az storage account management-policy create --account-name {account} --policy @rules.json --resource-group GROUP"
    )
}

/// For `PutBucketLifecycleConfiguration`.
fn s3(config: &S3) -> Value {
    let Lifecycle { colder_after, expire_after, abort_incomplete_after, .. } = config.lifecycle;
    let mut rule = json!({
        "ID": RULE,
        "Status": "Enabled",
        "Filter": { "Prefix": folder(&config.requests.prefix) },
        "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": Age::Of(abort_incomplete_after).days() },
    });
    if let Some(days) = colder_after.days() {
        rule["Transitions"] = json!([{ "Days": days, "StorageClass": "STANDARD_IA" }]);
    }
    if let Some(days) = expire_after.days() {
        rule["Expiration"] = json!({ "Days": days });
    }
    json!({ "Rules": [rule] })
}

/// For `gcloud storage buckets update --lifecycle-file`.
fn gcs(config: &Gcs) -> Value {
    let Lifecycle { colder_after, expire_after, abort_incomplete_after, .. } = config.lifecycle;
    let colder = json!({ "type": "SetStorageClass", "storageClass": "NEARLINE" });
    let actions = [
        (colder, colder_after),
        (json!({ "type": "Delete" }), expire_after),
        (json!({ "type": "AbortIncompleteMultipartUpload" }), Age::Of(abort_incomplete_after)),
    ];
    let rule = |(action, age): (Value, Age)| {
        let mut condition = json!({ "age": age.days()? });
        if !config.requests.prefix.is_empty() {
            condition["matchesPrefix"] = json!([folder(&config.requests.prefix)]);
        }
        Some(json!({ "action": action, "condition": condition }))
    };
    json!({ "lifecycle": { "rule": actions.into_iter().filter_map(rule).collect::<Vec<_>>() } })
}

/// For `az storage account management-policy create`. Azure itself deletes blocks that were never committed, after a week.
fn azure(config: &Azure) -> Value {
    let Lifecycle { colder_after, expire_after, .. } = config.lifecycle;
    let mut actions = json!({});
    for (action, age) in [("tierToCool", colder_after), ("delete", expire_after)] {
        if let Some(days) = age.days() {
            actions[action] = json!({ "daysAfterModificationGreaterThan": days });
        }
    }
    let prefix = format!("{}/{}", config.container, folder(&config.requests.prefix));
    let filters = json!({ "blobTypes": ["blockBlob"], "prefixMatch": [prefix] });
    let definition = json!({ "filters": filters, "actions": { "baseBlob": actions } });
    json!({ "rules": [{ "enabled": true, "name": RULE, "type": "Lifecycle", "definition": definition }] })
}

/// The prefix with a slash behind it, so that the rules leave `farm-b` alone when they are for `farm`.
fn folder(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(provider: Provider<'_>) -> String {
        provider.rules().unwrap().json
    }

    #[test]
    fn s3_gets_its_lifecycle_configuration() {
        let config: S3 = toml::from_str("bucket = \"farm-cas\"\nprefix = \"farm/cas\"").unwrap();
        let expected = r#"{
  "Rules": [
    {
      "AbortIncompleteMultipartUpload": {
        "DaysAfterInitiation": 7
      },
      "Expiration": {
        "Days": 365
      },
      "Filter": {
        "Prefix": "farm/cas/"
      },
      "ID": "croft-lifecycle",
      "Status": "Enabled",
      "Transitions": [
        {
          "Days": 90,
          "StorageClass": "STANDARD_IA"
        }
      ]
    }
  ]
}
"#;
        assert_eq!(json_of(Provider::S3(&config)), expected);
    }

    #[test]
    fn gcs_gets_its_lifecycle_file() {
        let config: Gcs = toml::from_str("bucket = \"farm-cas\"\nprefix = \"farm/cas\"").unwrap();
        let expected = r#"{
  "lifecycle": {
    "rule": [
      {
        "action": {
          "storageClass": "NEARLINE",
          "type": "SetStorageClass"
        },
        "condition": {
          "age": 90,
          "matchesPrefix": [
            "farm/cas/"
          ]
        }
      },
      {
        "action": {
          "type": "Delete"
        },
        "condition": {
          "age": 365,
          "matchesPrefix": [
            "farm/cas/"
          ]
        }
      },
      {
        "action": {
          "type": "AbortIncompleteMultipartUpload"
        },
        "condition": {
          "age": 7,
          "matchesPrefix": [
            "farm/cas/"
          ]
        }
      }
    ]
  }
}
"#;
        assert_eq!(json_of(Provider::Gcs(&config)), expected);
    }

    #[test]
    fn azure_gets_its_management_policy() {
        let config: Azure =
            toml::from_str("container = \"cas\"\naccount = \"farm\"\nprefix = \"farm/cas\"").unwrap();
        let expected = r#"{
  "rules": [
    {
      "definition": {
        "actions": {
          "baseBlob": {
            "delete": {
              "daysAfterModificationGreaterThan": 365
            },
            "tierToCool": {
              "daysAfterModificationGreaterThan": 90
            }
          }
        },
        "filters": {
          "blobTypes": [
            "blockBlob"
          ],
          "prefixMatch": [
            "cas/farm/cas/"
          ]
        }
      },
      "enabled": true,
      "name": "croft-lifecycle",
      "type": "Lifecycle"
    }
  ]
}
"#;
        assert_eq!(json_of(Provider::Azure(&config)), expected);
    }

    #[test]
    fn what_never_happens_has_no_rule() {
        let text = "bucket = \"cas\"\n[lifecycle]\ncolder_after = \"never\"\nexpire_after = \"never\"";
        let (s3, gcs): (S3, Gcs) = (toml::from_str(text).unwrap(), toml::from_str(text).unwrap());
        let (s3, gcs) = (json_of(Provider::S3(&s3)), json_of(Provider::Gcs(&gcs)));
        assert!(s3.contains("Abort") && !s3.contains("Transitions") && !s3.contains("Expiration"), "{s3}");
        assert!(gcs.contains("Abort") && !gcs.contains("NEARLINE") && !gcs.contains("Delete\""), "{gcs}");
        assert!(!gcs.contains("matchesPrefix"), "{gcs}");
    }
}
