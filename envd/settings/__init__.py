"""What the settings are made of; `envd.config` reads them.

`sections` has a class for each table of the file and `served` those of models, `fields` says what
a setting is, `values` reads one, `settings_file` the file.
"""
