"""What perplexity is measured on: token files and raw text as sets of ids, and the windows that predict each token once.

`token_sets` reads them, `texts` tokenizes, `windows` plans and cuts.
"""
