"""The page at `/`: a user's history as a picture, ranked candidates, the events behind a score.

app             Starlette routes, mounted by the service
page            page.html, page.css, timeline.js and page.js as one file, and its policy
http            parameters and responses of the routes
timeline_view   columns that the page draws; a history with one more event
"""
