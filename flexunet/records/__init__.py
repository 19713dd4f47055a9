"""Records of a built dataset for any framework: NumPy, Pillow and the standard library suffice.

    from flexunet.records import open_records

    records = open_records("DATA/hippocampus_t1w/slices/1.0.0", split="train")
    records[0]["image"]                  # uint8 [H, W, 1], the values that tf.data decodes
    loader = torch.utils.data.DataLoader(records.as_torch(), num_workers=4)
    source = records.as_grain()          # a grain.MapDataset

Neither TensorFlow nor nibabel is imported, so neither needs to be installed.
"""

from flexunet.records.reading import Records, RecordVolume, open_records

__all__ = ["RecordVolume", "Records", "open_records"]
